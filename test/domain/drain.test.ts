import { expect, test } from 'vitest';
import { startDrain, type Drain } from '../../src/domain/drain.ts';

/** A drain over numbers, in which a test says when each piece of work and each record ends. */
function begin(first: readonly number[], due: number[], atOnce = 4) {
  const working = new Map<number, { finish: () => void; fail: (error: Error) => void }>();
  const records: { group: readonly number[]; finish: () => void; fail: (error: Error) => void }[] = [];
  const claims: number[] = [];
  let most = 0;
  const drain: Drain = startDrain<number, number>(first, {
    atOnce,
    claim: async (limit) => {
      claims.push(limit);
      await settle();
      return due.splice(0, limit);
    },
    work: (item) => {
      const { promise, resolve, reject } = Promise.withResolvers<number>();
      working.set(item, { finish: () => resolve(item), fail: reject });
      most = Math.max(most, working.size);
      return promise.finally(() => working.delete(item));
    },
    record: (group) => {
      const { promise, resolve, reject } = Promise.withResolvers<void>();
      records.push({ group, finish: resolve, fail: reject });
      return promise;
    },
  });
  drain.done.catch(() => undefined);
  return { drain, working, records, claims, most: () => most };
}

const settle = () => new Promise((resolve) => setImmediate(resolve));
const turns = async () => {
  for (let n = 0; n < 5; n += 1) await settle();
};

test('more is claimed while half is still under way, never beyond what may be, and the slowest holds up none', async () => {
  const due = [5, 6, 7, 8, 9];
  const { drain, working, records, claims, most } = begin([1, 2, 3, 4], due);
  working.get(2)!.finish();
  await turns();
  expect(claims).toEqual([]);
  working.get(3)!.finish();
  await turns();
  expect(claims).toEqual([2]);
  expect([...working.keys()]).toEqual([1, 4, 5, 6]);
  while (working.size > 1) {
    for (const [item, { finish }] of working) if (item !== 1) finish();
    await turns();
  }
  expect(due).toEqual([]);
  working.get(1)!.finish();
  while (records.length > 0) {
    for (const { finish } of records.splice(0)) finish();
    await turns();
  }
  await drain.done;
  expect(most()).toBe(4);
});

test('what ends while a record is under way is recorded together, and the end waits for it', async () => {
  const { drain, working, records } = begin([1, 2, 3], []);
  let over = false;
  void drain.done.then(() => (over = true));
  for (const { finish } of [...working.values()].slice(0, 1)) finish();
  await turns();
  for (const { finish } of working.values()) finish();
  await turns();
  expect(records.map(({ group }) => group)).toEqual([[1]]);
  records[0]!.finish();
  await turns();
  expect(records.map(({ group }) => group)).toEqual([[1], [2, 3]]);
  expect(over).toBe(false);
  records[1]!.finish();
  await drain.done;
});

test('a poke brings in what has become due beside something that hangs', async () => {
  const due: number[] = [];
  const { drain, working, records } = begin([1], due);
  due.push(2, 3);
  await turns();
  expect([...working.keys()]).toEqual([1]);
  drain.poke();
  await turns();
  expect([...working.keys()]).toEqual([1, 2, 3]);
  for (const { finish } of working.values()) finish();
  await turns();
  for (const { finish } of records) finish();
  await turns();
  for (const { finish } of records) finish();
  await drain.done;
  // Nobody is left to hear it.
  due.push(4);
  drain.poke();
  await turns();
  expect(due).toEqual([4]);
});

test('no more is begun while much is unrecorded, and it goes on once that is written', async () => {
  const due = Array.from({ length: 40 }, (_, n) => n + 3);
  const { drain, working, records } = begin([1, 2], due, 2);
  for (let round = 0; round < 40; round += 1) {
    for (const { finish } of working.values()) finish();
    await turns();
  }
  expect(due.length).toBeGreaterThan(25);
  expect(records).toHaveLength(1);
  const seen: number[] = [];
  for (let round = 0; round < 100 && (due.length > 0 || records.length > 0); round += 1) {
    for (const { group, finish } of records.splice(0)) (seen.push(...group), finish());
    for (const { finish } of working.values()) finish();
    await turns();
  }
  await drain.done;
  expect(seen.sort((a, b) => a - b)).toEqual(Array.from({ length: 42 }, (_, n) => n + 1));
});

test('an error begins nothing more and is told when nothing is under way', async () => {
  const due = [3, 4];
  const { drain, working, records, claims } = begin([1, 2], due, 2);
  let told: unknown;
  void drain.done.catch((error: unknown) => (told = error));
  working.get(1)!.fail(new Error('lost'));
  await turns();
  expect(told).toBeUndefined();
  working.get(2)!.finish();
  await turns();
  expect(records.map(({ group }) => group)).toEqual([[2]]);
  records[0]!.fail(new Error('later'));
  await expect(drain.done).rejects.toThrow('lost');
  expect(claims).toEqual([]);
  expect(due).toEqual([3, 4]);
});
