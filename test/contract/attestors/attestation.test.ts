import { afterEach, describe, expect, test } from 'vitest';
import { createAttestation } from '../../../src/attestors/attestation.ts';
import { createJwtSvidAttestor } from '../../../src/attestors/jwt-svid/attestor.ts';
import { createOidcAttestor } from '../../../src/attestors/oidc/attestor.ts';
import type { Attestor } from '../../../src/domain/attestor.ts';
import { startOidcProvider } from '../../support/oidc.ts';
import { expectRefusal } from '../attestor-forge.ts';
import { audience, limits } from '../attestor-suite.ts';
import { emptyBundle, fileFixture, httpsFixture } from './jwt-svid-fixture.ts';
import type { SvidFixture } from './jwt-svid-fixture.ts';

const opened: { close(): Promise<void> }[] = [];
afterEach(async () => {
  for (const one of opened.splice(0).reverse()) await one.close();
});

/** The same attestor, with its verifications counted. */
function counted(attestor: Attestor) {
  let count = 0;
  const counting: Attestor = {
    ...attestor,
    attest(token, now) {
      count += 1;
      return attestor.attest(token, now);
    },
  };
  return { attestor: counting, count: () => count };
}

async function open({
  cacheSize = 100,
  setUp = httpsFixture,
}: { cacheSize?: number; setUp?: () => Promise<SvidFixture> } = {}) {
  const it = await setUp();
  opened.push(it);
  const { attestor, count } = counted(it.attestor);
  const service = createAttestation({ attestors: [attestor], clock: it.clock, cacheSize });
  const mint = (overrides: Record<string, unknown> = {}) =>
    it.domain.mint({ sub: 'spiffe://acme.test/agent', aud: audience, ...overrides });
  // The first verification waits for the keys to arrive, under a generation without any.
  await service.attest(await mint({ jti: 'warm' }));
  const warm = count();
  return { it, service, mint, verifications: () => count() - warm };
}

describe('attestation', () => {
  test('verifies a token once and then knows it', async () => {
    const { service, mint, verifications } = await open();
    const token = await mint();
    const first = await service.attest(token);
    expect(await service.attest(token)).toBe(first);
    expect(first).toMatchObject({ workload: 'spiffe://acme.test/agent', tenant: 'acme' });
    expect(verifications()).toBe(1);
  });

  test('gives a result that nobody can change for the next caller', async () => {
    const { service, mint } = await open();
    const result = await service.attest(await mint());
    expect(Object.isFrozen(result)).toBe(true);
  });

  test('verifies identical tokens that arrive together once, and refuses them together', async () => {
    const { service, mint, verifications } = await open();
    const token = await mint();
    const results = await Promise.all(Array.from({ length: 50 }, () => service.attest(token)));
    expect(new Set(results).size).toBe(1);
    expect(verifications()).toBe(1);
    const bad = await mint({ aud: 'other' });
    const outcomes = await Promise.allSettled(Array.from({ length: 50 }, () => service.attest(bad)));
    expect(outcomes.every(({ status }) => status === 'rejected')).toBe(true);
    expect(verifications()).toBe(2);
  });

  test('does not remember a refusal', async () => {
    const { it, service, mint, verifications } = await open();
    const early = await mint({ nbf: Math.floor(it.clock.now() / 1000) + 60 });
    await expectRefusal(service.attest(early), 'ATTESTATION_INVALID', /not valid yet/);
    it.clock.advance(60_000);
    expect(await service.attest(early)).toMatchObject({ tenant: 'acme' });
    expect(verifications()).toBe(2);
  });

  test('refuses a known token once it has expired', async () => {
    const { it, service, mint } = await open();
    const token = await mint({ ttlMs: 60_000 });
    await service.attest(token);
    it.clock.advance(60_000 + limits.skew + 1_000);
    await expectRefusal(service.attest(token), 'ATTESTATION_EXPIRED', /expired/);
  });

  test('takes a known token past its exp for no better than a new one', async () => {
    const { it, service, mint, verifications } = await open();
    const token = await mint({ ttlMs: 60_000 });
    await service.attest(token);
    it.clock.advance(61_000);
    await service.attest(token);
    await service.attest(token);
    expect(verifications()).toBe(3);
  });

  test('refuses a known token when the keys change: rotated or emptied', async () => {
    const { it, service, mint } = await open();
    const token = await mint();
    await service.attest(token);
    await it.rotate();
    it.clock.advance(limits.minRefresh);
    const next = await mint();
    await service.attest(next);
    await expectRefusal(service.attest(token), 'ATTESTATION_INVALID', /does not publish/);
    await it.publish(emptyBundle);
    it.clock.advance(limits.minRefresh);
    await service.attest(await mint({ header: { kid: 'nobody' } })).catch(() => undefined);
    await expectRefusal(service.attest(next), 'ATTESTATION_INVALID', /does not publish/);
  });

  test('refuses a known token when the keys are stale, and knows it again afterwards', async () => {
    const { it, service, mint } = await open();
    const token = await mint({ ttlMs: 3_000_000 });
    await service.attest(token);
    await it.breakDown();
    it.clock.advance(limits.staleAfter);
    expect(await service.attest(token)).toMatchObject({ tenant: 'acme' });
    it.clock.advance(1);
    await expectRefusal(service.attest(token), 'KEYS_STALE', /out of date/);
    expect(service.status()).toMatchObject([{ name: 'trust-domain/acme.test', ready: false }]);
    await it.mend();
    it.clock.advance(limits.minRefresh);
    expect(await service.attest(token)).toMatchObject({ tenant: 'acme' });
  });

  test('lets nobody join a verification that began under keys that are gone', async () => {
    const { it, mint } = await open();
    const token = await mint();
    let release!: () => void;
    const gate = new Promise<void>((resolve) => (release = resolve));
    let calls = 0;
    let generation = 1;
    const slow: Attestor = {
      ...it.attestor,
      generation: () => generation,
      async attest(text, now) {
        calls += 1;
        await gate;
        return it.attestor.attest(text, now);
      },
    };
    const service = createAttestation({ attestors: [slow], clock: it.clock, cacheSize: 10 });
    const before = service.attest(token);
    generation = 2;
    const after = service.attest(token);
    const joining = service.attest(token);
    release();
    await Promise.all([before, after, joining]);
    expect(calls).toBe(2);
  });

  test('remembers what it verified under the generation in which it began', async () => {
    const { it, mint } = await open();
    const token = await mint();
    let generation = 1;
    const moving: Attestor = {
      ...it.attestor,
      generation: () => generation,
      async attest(text, now) {
        const result = await it.attestor.attest(text, now);
        generation += 1;
        return result;
      },
    };
    const { attestor, count } = counted(moving);
    const service = createAttestation({ attestors: [attestor], clock: it.clock, cacheSize: 10 });
    await service.attest(token);
    await service.attest(token);
    expect(count()).toBe(2);
  });

  test('remembers no more tokens than it was told, the least used going first', async () => {
    const { service, mint, verifications } = await open({ cacheSize: 2 });
    const [a, b, c] = await Promise.all(['a', 'b', 'c'].map((jti) => mint({ jti })));
    for (const token of [a, b, a, c, a]) await service.attest(token!);
    expect(verifications()).toBe(3);
    await service.attest(b!);
    expect(verifications()).toBe(4);
  });

  test('refusals push no verified token out', async () => {
    const { service, mint, verifications } = await open({ cacheSize: 1 });
    const token = await mint();
    await service.attest(token);
    for (let i = 0; i < 20; i++) await service.attest(await mint({ aud: `other-${i}` })).catch(() => undefined);
    const before = verifications();
    await service.attest(token);
    expect(verifications()).toBe(before);
  });

  test('asks no attestor about a token of 1 MB, of garbage, or of an unknown issuer', async () => {
    const { service, mint, verifications } = await open();
    await expectRefusal(service.attest('x.'.repeat(500_000)), 'ATTESTATION_INVALID', /longer than 8192/);
    for (const garbage of ['', 'x', 'a.b.c', '...', 'Bearer x']) {
      await expectRefusal(service.attest(garbage), 'ATTESTATION_INVALID', /./);
    }
    for (const claims of [
      { sub: 'spiffe://other.test/agent' },
      { sub: 7 },
      { sub: undefined, iss: 'https://ci.test' },
    ]) {
      await expectRefusal(service.attest(await mint(claims)), 'ISSUER_UNKNOWN', /no trust domain or issuer/);
    }
    expect(verifications()).toBe(0);
  });

  test('sends each token to the attestor of its issuer or trust domain', async () => {
    const it = await fileFixture();
    opened.push(it);
    const provider = await startOidcProvider();
    opened.push(provider);
    const oidc = createOidcAttestor({
      ...{ issuer: provider.issuer, tenant: 'ci', audiences: [audience], requiredClaims: {}, workload: 'ci/{sub}' },
      ...{ clock: it.clock, ...limits },
    });
    const service = createAttestation({ attestors: [it.attestor, oidc], clock: it.clock, cacheSize: 10 });
    opened.push(service);
    expect(await service.attest(await it.genuine())).toMatchObject({ kind: 'jwt-svid', tenant: 'acme' });
    expect(await service.attest(await provider.accessToken(audience))).toMatchObject({ kind: 'oidc', tenant: 'ci' });
    expect(service.status().map(({ name, ready }) => [name, ready])).toEqual([
      ['trust-domain/acme.test', true],
      [`issuer/${provider.issuer}`, true],
    ]);
    // Signed by the trust domain, but in the provider's name.
    const crossed = await it.domain.mint({ sub: 'ci-runner', aud: audience, iss: provider.issuer });
    await expectRefusal(service.attest(crossed), 'ATTESTATION_INVALID', /does not publish/);
  });

  test('two tenants may share a trust domain: the audience decides, and the most telling refusal is given', async () => {
    const it = await httpsFixture();
    opened.push(it);
    const second = createJwtSvidAttestor({
      ...{ trustDomain: 'acme.test', tenant: 'second', audiences: ['second'], bundle: await sourceOf(it), ...limits },
    });
    const service = createAttestation({ attestors: [it.attestor, second], clock: it.clock, cacheSize: 10 });
    const mint = (aud: string, ttlMs = 60_000) => it.domain.mint({ sub: 'spiffe://acme.test/agent', aud, ttlMs });
    expect(await service.attest(await mint(audience))).toMatchObject({ tenant: 'acme' });
    expect(await service.attest(await mint('second'))).toMatchObject({ tenant: 'second' });
    await expectRefusal(service.attest(await mint('third')), 'ATTESTATION_INVALID', /another audience/);
    const old = await mint('second');
    it.clock.advance(200_000);
    await expectRefusal(service.attest(old), 'ATTESTATION_EXPIRED', /expired/);
  });

  test('closes its attestors', async () => {
    const it = await fileFixture();
    opened.push(it);
    let closed = 0;
    const closing: Attestor = {
      ...it.attestor,
      async close() {
        closed += 1;
      },
    };
    await createAttestation({ attestors: [closing, closing], clock: it.clock, cacheSize: 1 }).close();
    expect(closed).toBe(2);
  });
});

/** The fixture's keys, as a second attestor would have them. */
async function sourceOf(it: SvidFixture) {
  await it.attestor.attest(await it.genuine(), it.clock.now());
  return it.source;
}
