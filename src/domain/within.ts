import type { Millis } from './time.ts';

/**
 * Runs `work` with a signal that aborts after `ms`, or when `parent` does, and clears the timer as soon as the work has
 * ended. AbortSignal.timeout and AbortSignal.any would leave a timer and weak references behind for each call until they
 * run out: under load the collector then takes more of the processor than the calls.
 */
export async function within<T>(
  ms: Millis,
  work: (signal: AbortSignal) => Promise<T>,
  parent?: AbortSignal,
): Promise<T> {
  const ended = new AbortController();
  // A bound on real work, as AbortSignal.timeout is: no decision depends on it.
  // eslint-disable-next-line no-restricted-globals
  const timer = setTimeout(() => ended.abort(new Error('the call ran out of time')), ms);
  const follow = () => ended.abort(parent?.reason);
  if (parent?.aborted === true) follow();
  else parent?.addEventListener('abort', follow, { once: true });
  try {
    return await work(ended.signal);
  } finally {
    clearTimeout(timer);
    parent?.removeEventListener('abort', follow);
  }
}

/** Waits for `work` no longer than the signal lets it; then it throws `late()`, and the work goes on unheard. */
export async function untilAborted<T>(work: Promise<T>, signal: AbortSignal, late: () => Error): Promise<T> {
  let onAbort: (() => void) | undefined;
  const aborted = new Promise<never>((_, reject) => {
    onAbort = () => reject(late());
    if (signal.aborted) onAbort();
    else signal.addEventListener('abort', onAbort, { once: true });
  });
  try {
    return await Promise.race([work, aborted]);
  } finally {
    if (onAbort !== undefined) signal.removeEventListener('abort', onAbort);
    aborted.catch(() => undefined);
  }
}
