import { expect, test } from 'vitest';
import { GroupCommit } from '../../src/storage/group-commit.ts';

interface Item {
  tenant: string;
  n: number;
}

/** Writes nothing until it is let; remembers what was written together. */
function held(maxBatch: number, maxQueue: number) {
  const batches: string[] = [];
  let release: () => void = () => undefined;
  const first = new Promise<void>((resolve) => (release = resolve));
  const group = new GroupCommit<Item, number>({
    maxBatch,
    maxQueue,
    tenantOf: ({ tenant }) => tenant,
    isRefusal: () => false,
    flush: async (items) => {
      batches.push(items.map(({ tenant, n }) => `${tenant}${n}`).join(' '));
      if (batches.length === 1) await first;
      return items.map(({ n }) => n);
    },
  });
  return { group, batches, release };
}

const turn = () => new Promise((resolve) => setImmediate(resolve));

test('a rush of one tenant does not make another wait for its end', async () => {
  const { group, batches, release } = held(4, 100);
  const begun = group.write({ tenant: 'a', n: 0 });
  await turn();
  const rush = Array.from({ length: 10 }, (_, n) => group.write({ tenant: 'a', n: n + 1 }));
  const other = [group.write({ tenant: 'b', n: 1 }), group.write({ tenant: 'b', n: 2 })];
  release();
  expect(await Promise.all([begun, ...rush, ...other])).toEqual([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 1, 2]);
  expect(batches).toEqual(['a0', 'a1 b1 a2 b2', 'a3 a4 a5 a6', 'a7 a8 a9 a10']);
});

test('one tenant alone is written in the order of arrival, and can fill three quarters of the queue', async () => {
  const { group, batches, release } = held(3, 8);
  const begun = group.write({ tenant: 'a', n: 0 });
  await turn();
  const own = Array.from({ length: 6 }, (_, n) => group.write({ tenant: 'a', n: n + 1 }));
  await expect(group.write({ tenant: 'a', n: 7 })).rejects.toMatchObject({ reason: 'RATE_LIMITED' });
  const other = group.write({ tenant: 'b', n: 1 });
  release();
  await Promise.all([begun, ...own, other]);
  expect(batches).toEqual(['a0', 'a1 b1 a2', 'a3 a4 a5', 'a6']);
  // What has left the queue makes room again.
  await expect(group.write({ tenant: 'a', n: 8 })).resolves.toBe(8);
});
