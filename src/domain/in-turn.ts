/** Runs work one after the other for each key, so that on one replica nobody decides on a count that another is changing. */
export type InTurn = <T>(keys: readonly string[], work: () => Promise<T>) => Promise<T>;

/** Waiters are calls in flight, which the doors bound. */
export function createInTurn(): InTurn {
  const tails = new Map<string, Promise<void>>();

  async function one<T>(key: string, work: () => Promise<T>): Promise<T> {
    const before = tails.get(key);
    const { promise: mine, resolve: done } = Promise.withResolvers<void>();
    tails.set(key, mine);
    try {
      await before;
      return await work();
    } finally {
      if (tails.get(key) === mine) tails.delete(key);
      done();
    }
  }

  // In one order everywhere, so that two calls cannot wait for each other.
  return (keys, work) =>
    [...new Set(keys)].sort().reduceRight<typeof work>((inner, key) => () => one(key, inner), work)();
}
