/** At most `each` pieces of work at once for one key; the others wait in the order in which they came. */
export function createSlots(each: number) {
  const queues = new Map<string, { taken: number; waiting: (() => void)[] }>();
  return async <T>(key: string, work: () => Promise<T>): Promise<T> => {
    let queue = queues.get(key);
    if (queue === undefined) queues.set(key, (queue = { taken: 0, waiting: [] }));
    const { waiting } = queue;
    if (queue.taken < each) queue.taken += 1;
    else await new Promise<void>((resolve) => waiting.push(resolve));
    try {
      return await work();
    } finally {
      const next = waiting.shift();
      if (next !== undefined) next();
      else if ((queue.taken -= 1) === 0) queues.delete(key);
    }
  };
}
