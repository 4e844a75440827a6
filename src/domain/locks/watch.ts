import { indexLocks, type LockIndex } from './locked-by.ts';
import type { Lock } from './model.ts';
import type { LockStore } from './store.ts';

/** The locks in force as this replica last read them. */
export interface LoadedLocks {
  epoch: number;
  locks: readonly Lock[];
  index: LockIndex;
}

export interface LockWatch {
  /** A stale view costs a refused write and a second look, never a wrong issue: every write names its epoch. */
  current(): LoadedLocks;
  /** Read after this was called. Rejects when they cannot be read: then nothing may be issued. */
  fresh(): Promise<LoadedLocks>;
}

/** Reads the locks before anything is served by them. Many who want them fresh at once share one read. */
export async function openLockWatch(
  store: Pick<LockStore, 'view'>,
  changed: (locks: LoadedLocks) => void = () => undefined,
): Promise<LockWatch> {
  let loaded = await read();
  let running: Promise<LoadedLocks> | undefined;
  let next: Promise<LoadedLocks> | undefined;
  changed(loaded);

  async function read(): Promise<LoadedLocks> {
    const { epoch, locks } = await store.view();
    return { epoch, locks, index: indexLocks(locks) };
  }

  async function refresh(): Promise<LoadedLocks> {
    const found = await read();
    const before = loaded;
    // Two reads may come back in the other order.
    if (found.epoch > before.epoch) {
      loaded = found;
      changed(loaded);
    }
    return loaded;
  }

  function start(): Promise<LoadedLocks> {
    const reading = refresh().finally(() => {
      if (running === reading) running = undefined;
    });
    running = reading;
    return reading;
  }

  return {
    current: () => loaded,
    fresh: () => {
      if (running === undefined) return start();
      // The one under way may have read before whatever made the caller ask.
      next ??= running
        .catch(() => undefined)
        .then(() => {
          next = undefined;
          return start();
        });
      return next;
    },
  };
}
