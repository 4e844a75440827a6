import type { Clock, Millis } from '../../domain/time.ts';
import { createKeyHold } from './key-hold.ts';
import type { KeySource } from './key-source.ts';
import type { KeySet } from './verification-key.ts';

export interface RemoteKeysOptions {
  what: string;
  /** Fetches and reads the keys; must give up when the signal is aborted. */
  load(signal: AbortSignal): Promise<KeySet>;
  clock: Clock;
  /** Keys that were not confirmed for longer than this are not used. */
  staleAfter: Millis;
  /** No two attempts begin closer together than this, whoever asks. */
  minRefresh: Millis;
  /** For one attempt as a whole. */
  timeout: Millis;
  /** 0 ≤ random() < 1: spreads the replicas' attempts. */
  random?: () => number;
}

const day = 86_400_000;
/** SPIFFE Federation §4.1 recommends five minutes where the bundle gives no hint. */
const defaultInterval = 300_000;

/** Keys that are fetched: at start, then in the background, and once in a while because a token named an unknown one. */
export function createRemoteKeys(options: RemoteKeysOptions): KeySource {
  const { clock, staleAfter, minRefresh, timeout, random = Math.random } = options;
  const hold = createKeyHold({ what: options.what, staleAfter, retryAfter: minRefresh });
  const closing = new AbortController();
  let attempting: Promise<void> | undefined;
  let attemptedAt = -Infinity;
  let failures = 0;
  let timer: NodeJS.Timeout | undefined;

  const attempt = async () => {
    attemptedAt = clock.now();
    try {
      hold.replace(await options.load(AbortSignal.any([closing.signal, AbortSignal.timeout(timeout)])), clock.now());
      failures = 0;
    } catch (error) {
      failures += 1;
      hold.failed(error instanceof Error ? error.message : String(error));
    } finally {
      attempting = undefined;
      schedule();
    }
  };
  const begin = () => (attempting ??= attempt());

  const schedule = () => {
    clearTimeout(timer);
    if (closing.signal.aborted) return;
    const usual = refreshInterval(hold.current()?.refreshHint, { minRefresh, staleAfter });
    const delay = failures === 0 ? usual : Math.min(usual, minRefresh * 2 ** Math.min(failures - 1, 16));
    timer = setTimeout(() => void begin(), delay * (0.8 + 0.2 * random())).unref();
  };

  const refresh = async () => {
    // The distance, not the difference: a clock that was set back must not stop refreshing.
    if (attempting === undefined && Math.abs(clock.now() - attemptedAt) < minRefresh) return;
    if (!closing.signal.aborted) await begin();
  };

  void begin();
  return {
    async keys(now) {
      // Joins the attempt that is under way, as at the start.
      if (!hold.fresh(now)) await refresh();
      return hold.require(now);
    },
    refresh,
    fresh: hold.fresh,
    generation: hold.generation,
    status: hold.status,
    async close() {
      closing.abort(new Error('the broker is stopping'));
      clearTimeout(timer);
      await attempting;
    },
  };
}

/** The publisher's hint, kept between our own minimum and what leaves time for a second try before the keys are stale. */
export function refreshInterval(
  hint: Millis | undefined,
  { minRefresh, staleAfter }: { minRefresh: Millis; staleAfter: Millis },
): Millis {
  return Math.max(minRefresh, Math.min(hint ?? defaultInterval, staleAfter / 2, day));
}
