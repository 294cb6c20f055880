"""A SOCKS5 proxy on this machine."""

import socket
import socketserver
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def socks_to(port: int) -> Iterator[tuple[str, list[str]]]:
    """A SOCKS5 proxy (RFC 1928) whose connections all end at this port, and the hosts asked for."""
    asked: list[str] = []

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            methods = self.rfile.read(2)[1]
            self.rfile.read(methods)
            self.wfile.write(b"\x05\x00")
            assert self.rfile.read(4) == b"\x05\x01\x00\x03", "connect to a domain's name"
            asked.append(self.rfile.read(self.rfile.read(1)[0]).decode())
            self.rfile.read(2)
            self.wfile.write(b"\x05\x00\x00\x01" + bytes(6))
            with socket.create_connection(("127.0.0.1", port)) as behind:
                back = threading.Thread(target=self._pump, args=(behind, self.connection))
                back.start()
                self._pump(self.connection, behind)
                back.join()

        @staticmethod
        def _pump(source: socket.socket, target: socket.socket) -> None:
            while block := source.recv(65536):
                target.sendall(block)
            target.shutdown(socket.SHUT_WR)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"127.0.0.1:{server.server_address[1]}", asked
        finally:
            server.shutdown()
            thread.join()
