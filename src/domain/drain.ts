export interface DrainOptions<T, R> {
  /** Pieces of work under way at once. */
  atOnce: number;
  /** At most so many more; none when nothing is due, or when nothing more is to be begun. */
  claim(limit: number): Promise<readonly T[]>;
  /** What there is to record about it, undefined when nothing. */
  work(item: T): Promise<R | undefined>;
  /** Everything that was done while the record before it was under way. */
  record(results: readonly R[]): Promise<void>;
  /** Called when nothing is left, before `done`: a poke is heard until then. */
  ended?(): void;
}

export interface Drain {
  /** More may have become due. */
  poke(): void;
  /** Nothing is due any more, and everything is recorded; rejects with the first error, once nothing is under way. */
  done: Promise<void>;
}

/** Done and not recorded yet, in batches of `atOnce`, before no more is begun. */
const mostUnrecorded = 4;

/**
 * Works off what is due without a pause: claims more before it runs dry, and neither a claim nor a record holds up what is
 * under way, nor does the slowest piece of work hold up the others. There are no timers in it: claims and records that
 * become wanted while one is under way are made together when that one has ended, so that a busy drain makes few.
 */
export function startDrain<T, R>(first: readonly T[], options: DrainOptions<T, R>): Drain {
  const { atOnce, claim, work, record } = options;
  const done = Promise.withResolvers<void>();
  let working = 0;
  let claiming = false;
  let poked = false;
  let recording = false;
  let results: R[] = [];
  let over = false;
  let failure: { error: unknown } | undefined;
  begin(first);
  endIfIdle();
  return { poke: () => void refill(), done: done.promise };

  function begin(items: readonly T[]): void {
    for (const item of items) void carryOut(item);
  }

  async function carryOut(item: T): Promise<void> {
    working += 1;
    try {
      const result = await work(item);
      if (result !== undefined) results.push(result);
    } catch (error) {
      failure ??= { error };
    }
    working -= 1;
    void writeDown();
    void refill();
    endIfIdle();
  }

  async function writeDown(): Promise<void> {
    if (recording) return;
    recording = true;
    while (results.length > 0) {
      const group = results;
      results = [];
      await record(group).catch((error: unknown) => (failure ??= { error }));
      // It had no room for what was to be recorded.
      if (poked) void refill();
    }
    recording = false;
    endIfIdle();
  }

  async function refill(): Promise<void> {
    poked = true;
    if (claiming || over) return;
    claiming = true;
    while (poked && hasRoom()) {
      poked = false;
      try {
        begin(await claim(atOnce - working));
      } catch (error) {
        failure ??= { error };
      }
    }
    claiming = false;
    endIfIdle();
  }

  /** Half of it at least: one claim brings several, and the other half keeps the target busy meanwhile. */
  function hasRoom(): boolean {
    return failure === undefined && working <= atOnce / 2 && results.length < mostUnrecorded * atOnce;
  }

  function endIfIdle(): void {
    if (over || working > 0 || claiming || recording) return;
    over = true;
    options.ended?.();
    if (failure === undefined) done.resolve();
    else done.reject(failure.error);
  }
}
