import { randomBytes } from 'node:crypto';
import { expect, test } from 'vitest';
import { createSealer, SealError } from '../../src/keys/seal.ts';

const context = { tenant: 'acme', purpose: 'signing-key', id: 'k1' };
const sealer = (current: Uint8Array, previous: Uint8Array[] = []) =>
  createSealer({ current, previous, random: randomBytes });

test('what was sealed opens again, and two seals of one value differ', () => {
  const box = sealer(randomBytes(32));
  const first = box.seal(Buffer.from('private half'), context);
  const second = box.seal(Buffer.from('private half'), context);
  expect(box.open(first, context).toString()).toBe('private half');
  expect(first.equals(second)).toBe(false);
  expect(first.includes('private')).toBe(false);
});

test('after the sealing key is replaced, what the previous one sealed still opens', () => {
  const old = randomBytes(32);
  const sealed = sealer(old).seal(Buffer.from('x'), context);
  const rotated = sealer(randomBytes(32), [old]);
  expect(rotated.open(sealed, context).toString()).toBe('x');
  expect(rotated.keyId).not.toBe(sealer(old).keyId);
});

test('a key that is not configured is named by its id, and no key is shown', () => {
  const key = randomBytes(32);
  const other = randomBytes(32);
  const sealed = sealer(key).seal(Buffer.from('x'), context);
  const message = messageOf(() => sealer(other).open(sealed, context));
  expect(message).toContain(sealer(key).keyId);
  expect(message).toContain('previous sealing key');
  for (const secret of [key, other]) expect(message).not.toContain(secret.toString('hex'));
});

test.each([
  ['tenant', { ...context, tenant: 'other' }],
  ['purpose', { ...context, purpose: 'other' }],
  ['row', { ...context, id: 'k2' }],
  ['split of the same letters', { ...context, tenant: 'acmes', purpose: 'igning-key' }],
])('a value moved to another %s does not open', (_, moved) => {
  const box = sealer(randomBytes(32));
  expect(() => box.open(box.seal(Buffer.from('x'), context), moved)).toThrow(SealError);
});

test('no single altered byte goes unnoticed', () => {
  const box = sealer(randomBytes(32));
  const sealed = box.seal(Buffer.from('secret'), context);
  for (let index = 0; index < sealed.length; index += 1) {
    const altered = Buffer.from(sealed);
    altered[index]! ^= 1;
    expect(() => box.open(altered, context), `byte ${index}`).toThrow(SealError);
  }
  expect(() => box.open(sealed.subarray(0, 20), context)).toThrow(SealError);
});

test('a sealing key of another size is refused with the way to make one', () => {
  expect(messageOf(() => sealer(randomBytes(16)))).toContain('it must have 32');
  expect(messageOf(() => sealer(randomBytes(32), [randomBytes(31)]))).toContain('previous sealing key 1');
});

function messageOf(work: () => unknown): string {
  try {
    work();
  } catch (error) {
    return (error as Error).message;
  }
  throw new Error('it did not throw');
}
