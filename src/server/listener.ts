import type { AddressInfo, Server } from 'node:net';
import type { DoorListen } from './options.ts';
import { StartError } from './options.ts';

/** Binds, and says in words what is wrong when that fails. */
export async function listenOn(server: Server, door: string, { host, port }: DoorListen): Promise<number> {
  await new Promise<void>((resolve, reject) => {
    const refused = (cause: NodeJS.ErrnoException): void =>
      reject(new StartError(`The ${door} door cannot listen on ${host}:${port}: ${explain(cause)}.`, { cause }));
    server.once('error', refused);
    server.listen({ host, port, backlog: 1_024 }, () => {
      server.off('error', refused);
      // Accepting can fail later (no file descriptors left); the door stays open for when it can again.
      server.on('error', () => undefined);
      resolve();
    });
  });
  return (server.address() as AddressInfo).port;
}

function explain({ code, message }: NodeJS.ErrnoException): string {
  if (code === 'EADDRINUSE') return 'another process listens there';
  if (code === 'EACCES') return 'this user may not use that port';
  if (code === 'EADDRNOTAVAIL' || code === 'ENOTFOUND') return 'this machine has no such address';
  return message;
}

/** Sockets of a server, so that stopping it can end those that their peers keep open. */
export function trackSockets(server: Server): { destroyAll: () => void; count: () => number } {
  const sockets = new Set<{ destroy: () => void }>();
  server.on('connection', (socket) => {
    sockets.add(socket);
    socket.once('close', () => sockets.delete(socket));
  });
  return {
    destroyAll: () => {
      for (const socket of sockets) socket.destroy();
    },
    count: () => sockets.size,
  };
}
