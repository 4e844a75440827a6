import { setTimeout as sleep } from 'node:timers/promises';

export interface Loop {
  /** Runs the next round now. */
  kick(): void;
  /** Resolves when the round under way has ended. */
  stop(): Promise<void>;
}

export interface LoopOptions {
  /** Milliseconds between rounds that found nothing to do. */
  interval: number;
  /** One round; true when the next should follow at once. Time-outs are the round's own. */
  round(): Promise<boolean>;
  onError(error: Error): void;
}

/** A worker: rounds one after the other, a pause between idle ones, and no error that ends it. */
export function startLoop(options: LoopOptions): Loop {
  const stopping = new AbortController();
  let wake = new AbortController();
  const running = run();
  return {
    // The reason of an abort is made with its stack, also for a second one: a close of a thousand tasks kicks as often.
    kick: () => {
      if (!wake.signal.aborted) wake.abort();
    },
    stop: async () => {
      stopping.abort();
      await running;
    },
  };

  async function run(): Promise<void> {
    let failures = 0;
    while (!stopping.signal.aborted) {
      wake = new AbortController();
      let more = false;
      try {
        more = await options.round();
        failures = 0;
      } catch (error) {
        failures += 1;
        options.onError(error as Error);
      }
      if (more) continue;
      const pause = options.interval * Math.min(2 ** failures, 16);
      await sleep(pause, undefined, { signal: AbortSignal.any([stopping.signal, wake.signal]) }).catch(() => undefined);
    }
  }
}
