import { EventEmitter } from 'node:events';
import { setTimeout as sleep } from 'node:timers/promises';
import pg from 'pg';
import type { Wake } from '../domain/store.ts';

export const channel = 'leasehold_task';
export const policyChannel = 'leasehold_policy';
export const signalChannel = 'leasehold_signal';
export const lockChannel = 'leasehold_lock';

/** Sent at commit, to every replica. */
export async function notifyTask(client: Pick<pg.ClientBase, 'query'>, tenant: string, taskId: string): Promise<void> {
  await client.query({
    name: 'notify-task',
    text: 'SELECT pg_notify($1, $2)',
    values: [channel, `${tenant} ${taskId}`],
  });
}

/** PostgreSQL takes less than 8,000 bytes in one notification. */
const idsPerNotification = 150;

/** Many at once, several in each notification: a close may end thousands. */
export async function notifyTasks(
  client: Pick<pg.ClientBase, 'query'>,
  tenant: string,
  taskIds: readonly string[],
): Promise<void> {
  const payloads: string[] = [];
  for (let at = 0; at < taskIds.length; at += idsPerNotification) {
    payloads.push([tenant, ...taskIds.slice(at, at + idsPerNotification)].join(' '));
  }
  await client.query({
    name: 'notify-tasks',
    text: 'SELECT pg_notify($1, payload) FROM unnest($2::text[]) payload',
    values: [channel, payloads],
  });
}

/** LISTENs on a connection of its own, for as long as the broker runs. Missed notifications cost only time. */
export function createWake(config: pg.ClientConfig): Wake & { close(): Promise<void> } {
  const emitter = new EventEmitter();
  emitter.setMaxListeners(0);
  const stopping = new AbortController();
  const running = listen(config, emitter, stopping.signal);
  return {
    onTask: (listener) => {
      emitter.on('task', listener);
      return () => emitter.off('task', listener);
    },
    onPolicy: (listener) => {
      emitter.on('policy', listener);
      return () => emitter.off('policy', listener);
    },
    onSignal: (listener) => {
      emitter.on('signal', listener);
      return () => emitter.off('signal', listener);
    },
    onLock: (listener) => {
      emitter.on('lock', listener);
      return () => emitter.off('lock', listener);
    },
    close: async () => {
      stopping.abort();
      await running;
    },
  };
}

async function listen(config: pg.ClientConfig, emitter: EventEmitter, signal: AbortSignal): Promise<void> {
  while (!signal.aborted) {
    const client = new pg.Client(config);
    try {
      await new Promise<void>((resolve, reject) => {
        client.on('error', reject);
        client.on('end', resolve);
        signal.addEventListener('abort', () => resolve(), { once: true });
        client.on('notification', ({ channel: heard, payload }) => {
          if (heard !== channel) {
            emitter.emit(heard === policyChannel ? 'policy' : heard === signalChannel ? 'signal' : 'lock');
            return;
          }
          const [tenant, ...taskIds] = (payload ?? '').split(' ');
          for (const taskId of taskIds) emitter.emit('task', tenant, taskId);
        });
        client
          .connect()
          .then(() =>
            client.query(`LISTEN ${channel}; LISTEN ${policyChannel}; LISTEN ${signalChannel}; LISTEN ${lockChannel}`),
          )
          .catch(reject);
      });
    } catch {
      // The pool's own errors are reported; here the loop just tries again.
    } finally {
      await client.end().catch(() => undefined);
    }
    await sleep(1_000, undefined, { signal, ref: false }).catch(() => undefined);
  }
}
