import { open } from 'node:fs/promises';
import type { Clock, Millis } from '../../domain/time.ts';
import { createKeyHold } from '../keys/key-hold.ts';
import type { KeySource } from '../keys/key-source.ts';
import { maxBundleBytes, parseBundle } from './parse-bundle.ts';

export interface FileBundleOptions {
  path: string;
  clock: Clock;
  pollMs?: Millis;
  /** How long the last good bundle is used while the file is missing or broken. */
  staleAfter?: Millis;
}

/**
 * A trust domain's bundle in a file. The content is read and compared, because a file's times tell nothing where a
 * volume is swapped underneath by a symbolic link, as Kubernetes does.
 */
export function fileBundle({ path, clock, pollMs = 1000, staleAfter = 3_600_000 }: FileBundleOptions): KeySource {
  const hold = createKeyHold({ what: path, staleAfter, retryAfter: pollMs });
  let last: Buffer | undefined;
  let reading: Promise<void> | undefined;
  let timer: NodeJS.Timeout | undefined;
  let closed = false;

  const read = async () => {
    try {
      const bytes = await readBounded(path);
      const current = hold.current();
      const next = current !== undefined && last?.equals(bytes) ? current : parseBundle(bytes);
      hold.replace(next, clock.now());
      last = bytes;
    } catch (error) {
      hold.failed((error as Error).message);
    } finally {
      reading = undefined;
      clearTimeout(timer);
      if (!closed) timer = setTimeout(() => void begin(), pollMs).unref();
    }
  };
  const begin = () => (reading ??= read());

  const refresh = async () => {
    // A read that is under way may have seen what the file was before the caller's reason to look again.
    await reading;
    if (!closed) await begin();
  };

  void begin();
  return {
    async keys(now) {
      if (!hold.fresh(now)) await refresh();
      return hold.require(now);
    },
    refresh,
    fresh: hold.fresh,
    generation: hold.generation,
    status: hold.status,
    async close() {
      closed = true;
      clearTimeout(timer);
      await reading;
    },
  };
}

async function readBounded(path: string): Promise<Buffer> {
  const file = await open(path, 'r');
  try {
    const stat = await file.stat();
    if (!stat.isFile()) throw new Error('is not a regular file');
    if (stat.size > maxBundleBytes) throw new Error(`is larger than ${maxBundleBytes} bytes`);
    return await file.readFile();
  } finally {
    await file.close();
  }
}
