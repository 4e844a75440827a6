import fc from 'fast-check';
import { expect, test } from 'vitest';
import { checkRotationSettings, latestExpiry, planRotation, signingKey } from '../../src/keys/rotation.ts';
import type { KeyTimes, RotationSettings } from '../../src/keys/rotation.ts';

const minute = 60_000;
const settings: RotationSettings = {
  rotateEvery: 60 * minute,
  publishAhead: 12 * minute,
  maxTokenLife: 15 * minute,
  cacheAge: 10 * minute,
  skew: minute,
};

/** What the store does with the steps, in memory. */
function apply(keys: KeyTimes[], now: number, name: () => string): KeyTimes[] {
  let next = keys.map((key) => ({ ...key }));
  for (const step of planRotation(keys, now, settings)) {
    if (step.do === 'create') next.push({ kid: name(), ...step });
    if (step.do === 'delete') next = next.filter((key) => key.kid !== step.kid);
    const key = 'kid' in step ? next.find(({ kid }) => kid === step.kid) : undefined;
    if (step.do === 'retire') Object.assign(key!, { state: 'retired', deleteAt: step.deleteAt });
    if (step.do === 'activate')
      Object.assign(key!, { state: 'active', retiresAt: step.retiresAt, deleteAt: step.deleteAt });
    expect(next.filter(({ state }) => state === 'active').length).toBeLessThanOrEqual(1);
    expect(next.filter(({ state }) => state === 'published').length).toBeLessThanOrEqual(1);
    for (const { activatesAt, retiresAt, deleteAt } of next)
      expect(activatesAt < retiresAt && retiresAt < deleteAt).toBe(true);
  }
  return next;
}

test('whatever the gaps between ticks: there is a key to sign with, and its tokens never outlive its publication', () => {
  fc.assert(
    fc.property(fc.array(fc.integer({ min: 1, max: 200 * minute }), { minLength: 1, maxLength: 80 }), (gaps) => {
      let count = 0;
      let now = 1_800_000_000_000;
      let keys = apply([], now, () => `k${(count += 1)}`);
      const issued: { kid: string; until: number }[] = [];
      for (const gap of gaps) {
        const signer = signingKey(keys, now, settings);
        expect(signer).toBeDefined();
        issued.push({
          kid: signer!.kid,
          until: Math.min(now + settings.maxTokenLife, latestExpiry(signer!, settings)),
        });
        now += gap;
        keys = apply(keys, now, () => `k${(count += 1)}`);
        for (const token of issued) {
          // A verifier accepts it up to `skew` after its end.
          if (token.until + settings.skew > now) expect(keys.map(({ kid }) => kid)).toContain(token.kid);
        }
        expect(keys.length).toBeLessThanOrEqual(6);
      }
    }),
    { numRuns: 300 },
  );
});

test('with regular ticks every token gets its full life, and a key is public for longer than caches live before it signs', () => {
  let count = 0;
  let now = 1_800_000_000_000;
  const seen = new Map<string, number>();
  let keys = apply([], now, () => `k${(count += 1)}`);
  const firstKid = keys[0]!.kid;
  const signed = new Set<string>();
  for (let step = 0; step < 600; step += 1) {
    for (const key of keys) if (!seen.has(key.kid)) seen.set(key.kid, now);
    const signer = signingKey(keys, now, settings)!;
    expect(latestExpiry(signer, settings) - now).toBeGreaterThanOrEqual(settings.maxTokenLife);
    if (!signed.has(signer.kid) && signer.kid !== firstKid) {
      expect(now - seen.get(signer.kid)!).toBeGreaterThanOrEqual(settings.cacheAge + settings.skew);
    }
    signed.add(signer.kid);
    now += minute;
    keys = apply(keys, now, () => `k${(count += 1)}`);
  }
  expect(signed.size).toBeGreaterThan(8);
});

test('settings under which verifiers would meet unknown keys are refused', () => {
  expect(() => checkRotationSettings(settings)).not.toThrow();
  expect(() => checkRotationSettings({ ...settings, publishAhead: minute })).toThrow(/publishAhead/);
  expect(() => checkRotationSettings({ ...settings, rotateEvery: minute })).toThrow(/rotateEvery/);
  expect(() => checkRotationSettings({ ...settings, maxTokenLife: Number.NaN })).toThrow(/maxTokenLife/);
});
