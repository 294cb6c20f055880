#!/usr/bin/env bash
# Unpacks llama.cpp's server and the C library it was built with, as Debian 14 has them, into a
# folder. Nothing is installed into the system and no rights are needed; apt checks the signatures.
set -euo pipefail

folder=$1
if ! { command -v apt-get && command -v dpkg-deb; } > /dev/null; then
  echo "llama.cpp's server comes from Debian's packages, and this is no Debian; tests skip it" >&2
  exit 0
fi
rm -rf "$folder"
mkdir -p "$folder"/apt/state/lists/partial "$folder"/apt/cache/archives/partial "$folder"/apt/debs
folder=$(realpath "$folder")
touch "$folder/apt/status"
# the mirror that this system uses already
mirror=$(apt-get indextargets --format '$(SITE)' | grep -m1 '/debian$')
echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror forky main" \
  > "$folder/apt/sources.list"
apt=(
  apt-get -qq
  -o "Dir::State=$folder/apt/state"
  -o "Dir::State::status=$folder/apt/status"
  -o "Dir::Cache=$folder/apt/cache"
  -o "Dir::Etc::sourcelist=$folder/apt/sources.list"
  -o "Dir::Etc::sourceparts=-"
  -o "Acquire::Languages=none"
  -o "APT::Sandbox::User="
)
"${apt[@]}" update
cd "$folder/apt/debs"
"${apt[@]}" download llama.cpp-tools libllama0 libggml0 libc6 libstdc++6 libgomp1 libgcc-s1 \
  libssl3t64 libzstd1 zlib1g
for package in ./*.deb; do
  dpkg-deb -x "$package" "$folder"
done
rm -r "$folder/apt"
