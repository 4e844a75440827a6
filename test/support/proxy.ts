import { once } from 'node:events';
import net from 'node:net';
import type { AddressInfo } from 'node:net';

/**
 * `pass` forwards; `refuse` does not listen; `hang` accepts and keeps silent; `mute` forwards what is asked and loses what is
 * answered.
 */
export type ProxyMode = 'pass' | 'refuse' | 'hang' | 'mute';

export interface TestProxy {
  port: number;
  /** From now on. Connections that lost something under the old mode are cut. */
  mode(next: ProxyMode): Promise<void>;
  /** New connections go to this port from now on, as when a name or an address moves. */
  forwardTo(port: number): void;
  close(): Promise<void>;
}

/** A TCP proxy on loopback, standing for a network that fails. */
export async function startProxy(host: string, port: number): Promise<TestProxy> {
  let mode: ProxyMode = 'pass';
  let upstreamPort = port;
  const sockets = new Set<net.Socket>();
  const track = (socket: net.Socket) => {
    sockets.add(socket);
    socket.on('close', () => sockets.delete(socket));
    socket.on('error', () => undefined);
  };
  const server = net.createServer((client) => {
    track(client);
    if (mode === 'hang') return;
    const upstream = net.connect({ host, port: upstreamPort });
    track(upstream);
    client.on('data', (chunk) => mode !== 'hang' && upstream.write(chunk));
    upstream.on('data', (chunk) => mode === 'pass' && client.write(chunk));
    client.on('close', () => upstream.destroy());
    upstream.on('close', () => mode !== 'hang' && client.destroy());
  });
  const listen = async (at: number) => {
    server.listen(at, '127.0.0.1');
    await once(server, 'listening');
  };
  const cut = () => {
    for (const socket of sockets) socket.destroy();
  };
  const close = async () => {
    const closed = server.listening ? once(server, 'close') : undefined;
    server.close();
    cut();
    await closed;
  };
  await listen(0);
  const own = (server.address() as AddressInfo).port;
  return {
    port: own,
    async mode(next) {
      const before = mode;
      mode = next;
      if (next === 'refuse') await close();
      else if (before !== 'pass') cut();
      if (!server.listening && next !== 'refuse') await listen(own);
    },
    forwardTo: (next) => {
      upstreamPort = next;
    },
    close,
  };
}
