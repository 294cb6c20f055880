"""The page's colours and layout, light and dark as the browser asks for."""

import gradio as gr

THEME = gr.themes.Default(
    primary_hue="indigo",
    neutral_hue="slate",
    font=["system-ui", "sans-serif"],  # nothing is fetched from elsewhere
    font_mono=["ui-monospace", "monospace"],
).set(
    button_primary_background_fill="*primary_700",
    button_primary_background_fill_hover="*primary_800",
    button_primary_background_fill_dark="*primary_700",
    button_primary_background_fill_hover_dark="*primary_600",
    button_primary_text_color="white",
    button_primary_text_color_dark="white",
    body_text_color_subdued="*neutral_600",
    body_text_color_subdued_dark="*neutral_300",
    block_label_text_color="*neutral_700",
    block_label_text_color_dark="*neutral_200",
    input_placeholder_color="*neutral_600",
    input_placeholder_color_dark="*neutral_300",
)

CSS = """
:root {--good: #15803d; --bad: #b91c1c; --line: #94a3b8; --marked: #fde68a}
.dark {--good: #4ade80; --bad: #fca5a5; --line: #64748b; --marked: #facc15}
.head h1 {font-size: 1.5rem; font-weight: 700; margin: 0}
.head p {margin: 0.1rem 0}
.head .about, .texts .about {color: var(--body-text-color-subdued); font-size: 0.85rem}
.texts {font-size: 0.95rem; line-height: 1.5}
.texts p {margin: 0.2rem 0; white-space: pre-wrap; overflow-wrap: anywhere}
.texts .about p {margin: 0}
.texts b, .texts h4 {font-weight: 600}
.texts h4 {margin: 0 0 0.4rem 0; overflow-wrap: anywhere}
.texts mark {background: var(--marked); color: #1f2937; border-radius: 3px; padding: 0 2px}
.texts .box {border: 1px solid var(--border-color-primary); border-radius: 8px;
  padding: 0.6rem 0.8rem; margin: 0 0 0.6rem 0; scroll-margin: 1rem}
.texts .box.unranked {border-style: dashed}
.texts .box:target {outline: 3px solid var(--color-accent)}
.texts .note {border-left: 4px solid #d97706; padding: 0.3rem 0.7rem; margin: 0 0 0.6rem 0}
.texts .error {border-left: 4px solid #dc2626; padding: 0.3rem 0.7rem; margin: 0 0 0.6rem 0}
.texts .badge {font-size: 0.8rem; font-weight: 600; border-radius: 999px; padding: 0.05rem 0.6rem;
  border: 1px solid currentColor; white-space: nowrap}
.texts .badge.reranked {color: #fff; background: #166534; border-color: #166534}
.texts .badge.unranked {border-style: dashed; color: var(--body-text-color)}
.texts .side {display: grid; gap: 1.2rem; align-items: start;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 24rem), 1fr))}
.texts .up {color: var(--good)} .texts .down {color: var(--bad)}
.texts pre {white-space: pre-wrap; font-size: 0.8rem; background: none; color: inherit}
.texts .moves {display: grid; grid-template-columns: minmax(0, 1fr) 3.2rem minmax(0, 1fr);
  font-size: 0.85rem; margin-bottom: 0.8rem}
.texts .moves header {padding-bottom: 0.3rem}
.texts .moves ol {list-style: none; margin: 0; padding: 0}
.texts .moves li {height: 1.9rem; line-height: 1.9rem; margin: 0; padding: 0 0.4rem;
  overflow: hidden; white-space: nowrap; text-overflow: ellipsis;
  border-bottom: 1px solid var(--border-color-primary)}
.texts .moves svg {width: 100%; height: calc(1.9rem * var(--rows)); display: block}
.texts .moves line {stroke: var(--line); stroke-width: 2px; vector-effect: non-scaling-stroke}
.texts .moves line.up {stroke: var(--good)} .texts .moves line.down {stroke: var(--bad)}
.texts.turns {min-height: 9rem; display: flex; flex-direction: column; gap: 0.6rem}
.texts .turn {border: 1px solid var(--border-color-primary); border-radius: 8px; max-width: 90%;
  padding: 0.5rem 0.8rem; align-self: flex-start}
.texts .turn.user {align-self: flex-end; background: var(--background-fill-secondary)}
.selected[role=tab] {color: var(--link-text-color) !important}
.texts .cite {font-weight: 600; color: var(--link-text-color); text-decoration: underline;
  display: inline; margin: 0; padding: 0}
.texts .waiting::before {content: ""; display: inline-block; width: 0.8em; height: 0.8em;
  margin-right: 0.5em; border: 2px solid currentColor; border-right-color: transparent;
  border-radius: 50%; animation: turning 0.8s linear infinite}
@keyframes turning {to {transform: rotate(1turn)}}
@media (prefers-reduced-motion: reduce) {.texts .waiting::before {animation: none}}
.small-buttons {flex-wrap: wrap !important; gap: 0.4rem !important}
.small-buttons button {flex: none !important; width: auto !important;
  min-width: 0 !important; max-width: 100% !important; white-space: normal}
.example {border-radius: 999px !important; font-weight: 400 !important}
.ask-row {flex-wrap: nowrap !important}
:focus-visible {outline: 3px solid var(--color-accent) !important; outline-offset: 1px}
"""
