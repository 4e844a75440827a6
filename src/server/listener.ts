import type { AddressInfo, Server, Socket } from 'node:net';
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

export interface Sockets {
  /** Waits until the peers have gone, then cuts off those that are left. */
  closeAll: (waitMs: number) => Promise<void>;
}

/** Sockets of a server, so that stopping it can end those that their peers keep open. */
export function trackSockets(server: Server): Sockets {
  const sockets = new Set<Socket>();
  let emptied: (() => void) | undefined;
  server.on('connection', (socket) => {
    sockets.add(socket);
    // Finds peers that vanished without a word.
    socket.setKeepAlive(true, 30_000);
    socket.once('close', () => {
      sockets.delete(socket);
      if (sockets.size === 0) emptied?.();
    });
  });
  return {
    async closeAll(waitMs) {
      if (sockets.size > 0) {
        await new Promise<void>((resolve) => {
          const cutOff = setTimeout(resolve, waitMs);
          emptied = () => {
            clearTimeout(cutOff);
            resolve();
          };
        });
      }
      for (const socket of sockets) socket.destroy();
    },
  };
}
