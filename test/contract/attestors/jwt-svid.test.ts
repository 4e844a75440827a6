import { afterEach, describe, expect, test } from 'vitest';
import { createJwtSvidAttestor } from '../../../src/attestors/jwt-svid/attestor.ts';
import { expectRefusal } from '../attestor-forge.ts';
import { attestorSuite, audience, limits } from '../attestor-suite.ts';
import { emptyBundle, fileFixture, httpsFixture } from './jwt-svid-fixture.ts';
import type { SvidFixture } from './jwt-svid-fixture.ts';

const sources = [
  ['JWT-SVID with its bundle in a file', fileFixture],
  ['JWT-SVID with a bundle endpoint', httpsFixture],
] as const;

for (const [name, setUp] of sources) attestorSuite(name, setUp);

describe.each(sources)('%s', (_name, setUp) => {
  let it: SvidFixture | undefined;
  afterEach(() => it?.close());

  const attest = (token: string) => it!.attestor.attest(token, it!.clock.now());
  const mint = (overrides: Record<string, unknown> = {}) =>
    it!.domain.mint({ sub: 'spiffe://acme.test/agent', aud: audience, ...overrides });
  const look = async (bundle: string) => {
    await it!.publish(bundle);
    it!.clock.advance(limits.minRefresh);
    await attest(await mint({ header: { kid: 'nobody' } })).catch(() => undefined);
  };
  const bundle = () =>
    JSON.parse(it!.domain.bundleJson()) as { keys: Record<string, unknown>[]; spiffe_sequence: number };

  test('fault 16, rolled back: a lower sequence is refused, the present bundle stays, and the status says so', async () => {
    it = await setUp();
    const old = it.domain.bundleJson();
    await attest(await mint());
    await it.rotate();
    it.clock.advance(limits.minRefresh);
    const good = await mint();
    await attest(good);
    const generation = it.attestor.generation();
    await look(old);
    expect(it.attestor.generation()).toBe(generation);
    expect(await attest(good)).toMatchObject({ tenant: 'acme' });
    const status = it.attestor.status(it.clock.now());
    expect(status.detail).toMatch(/sequence 2;.*sequence 1 is lower than 2/);
    // Emptied by a replayed bundle: refused like any other.
    await look(JSON.stringify({ keys: [], spiffe_sequence: 1 }));
    expect(await attest(good)).toMatchObject({ tenant: 'acme' });
    // A refused bundle is no confirmation of the present one, which goes stale.
    it.clock.advance(limits.staleAfter);
    await expectRefusal(attest(await mint()), 'KEYS_STALE', /out of date/);
  });

  test('a bundle without a sequence does not make an older one acceptable again', async () => {
    it = await setUp();
    const old = it.domain.bundleJson();
    it.domain.rotate();
    await look(it.domain.bundleJson());
    const { keys } = bundle();
    await look(JSON.stringify({ keys }));
    expect(await attest(await mint())).toMatchObject({ tenant: 'acme' });
    await look(old);
    expect(it.attestor.status(it.clock.now()).detail).toMatch(/lower than 2/);
  });

  test('a sequence has 64 bits of precision', async () => {
    it = await setUp();
    const { keys } = bundle();
    const numbered = (sequence: string) =>
      `{"x":{"spiffe_sequence":1},"keys":${JSON.stringify(keys)},"spiffe_sequence":${sequence}}`;
    await look(numbered('18446744073709551615'));
    await look(numbered('18446744073709551614'));
    expect(it.attestor.status(it.clock.now()).detail).toMatch(
      /18446744073709551614 is lower than 18446744073709551615/,
    );
    for (const sequence of ['1.5', '-1', '"7"', '1e3', 'null']) {
      await look(numbered(sequence));
      expect(it.attestor.status(it.clock.now()).detail).toMatch(/`spiffe_sequence` is not a whole number/);
    }
  });

  test.each([
    ['x509-svid', { use: 'x509-svid' }],
    ['sig', { use: 'sig' }],
    ['no use', { use: undefined }],
    ['another case', { use: 'JWT-SVID' }],
    ['no kid', { kid: undefined }],
    ['an alg of another type', { alg: 'RS256' }],
    ['an operation other than verifying', { key_ops: ['sign'] }],
  ])('a key in the bundle with %s verifies nothing', async (_what, change) => {
    it = await setUp();
    await attest(await mint());
    await look(JSON.stringify({ keys: bundle().keys.map((key) => ({ ...key, ...change })), spiffe_sequence: 2 }));
    await expectRefusal(attest(await mint()), 'ATTESTATION_INVALID', /does not publish/);
    await expectRefusal(attest(await mint({ header: { kid: undefined } })), 'ATTESTATION_INVALID', /does not publish/);
  });

  test('members of a bundle that are not understood are left out, and the rest serves', async () => {
    it = await setUp();
    const strange = [
      { use: 'jwt-svid', kid: 'a', kty: 'oct', k: 'c2VjcmV0' },
      { use: 'jwt-svid', kid: 'b', kty: 'FUTURE' },
      { use: 'jwt-svid', kid: 'c', kty: 'EC', crv: 'secp256k1', x: 'AA', y: 'AA' },
      { use: 'tomorrow', kid: 'd', kty: 'EC' },
      7,
    ];
    await look(JSON.stringify({ keys: [...strange, ...bundle().keys], spiffe_sequence: 2, more: {} }));
    expect(await attest(await mint())).toMatchObject({ tenant: 'acme' });
    expect(it.attestor.status(it.clock.now()).detail).toMatch(
      /^1 keys; sequence 2;.*5 ignored \(keys\[0\]: it is a secret/,
    );
  });

  test('a bundle that publishes its private key is not trusted', async () => {
    it = await setUp();
    const jwk = it.domain.signingKey().privateKey.export({ format: 'jwk' });
    await look(
      JSON.stringify({ keys: [{ ...jwk, kid: it.domain.signingKey().kid, use: 'jwt-svid' }], spiffe_sequence: 2 }),
    );
    await expectRefusal(attest(await mint()), 'ATTESTATION_INVALID', /does not publish/);
  });

  test.each([
    ['cut off', (text: string) => text.slice(0, -10), /not JSON/],
    ['with keys twice', (text: string) => `{"keys":[],${text.trim().slice(1)}`, /names a member twice/],
    ['without keys', () => '{}', /no `keys` array/],
    ['with too many keys', () => JSON.stringify({ keys: new Array(513).fill({}) }), /more than 512 keys/],
    ['too large', (text: string) => text + ' '.repeat(1_048_577), /larger than 1048576 bytes/],
    ['empty', () => '', /not JSON/],
  ])('a bundle %s is refused whole and the last good one serves', async (_what, spoil, detail) => {
    it = await setUp();
    await attest(await mint());
    await look(spoil(it.domain.bundleJson()));
    expect(it.attestor.status(it.clock.now())).toMatchObject({ ready: true, detail: expect.stringMatching(detail) });
    expect(await attest(await mint())).toMatchObject({ tenant: 'acme' });
  });

  test('an emptied bundle is noticed even when no sequence goes with it', async () => {
    it = await setUp();
    await attest(await mint());
    await look(JSON.stringify({ keys: [] }));
    await expectRefusal(attest(await mint()), 'ATTESTATION_INVALID', /does not publish/);
    await look(emptyBundle);
    await expectRefusal(attest(await mint()), 'ATTESTATION_INVALID', /does not publish/);
  });
});

describe('JWT-SVID', () => {
  let it: SvidFixture;
  afterEach(() => it.close());
  const attest = (token: string) => it.attestor.attest(token, it.clock.now());
  const mint = (overrides: Record<string, unknown> = {}) =>
    it.domain.mint({ sub: 'spiffe://acme.test/agent', aud: audience, ...overrides });

  test('any header member besides alg, kid and typ is refused (JWT-SVID §2)', async () => {
    it = await fileFixture();
    for (const member of ['x5t', 'cty', 'nonce', '__proto__', 'constructor']) {
      const header = Object.fromEntries([[member, 'x']]);
      await expectRefusal(attest(await mint({ header })), 'ATTESTATION_INVALID', /besides alg, kid and typ/);
    }
  });

  test('typ is JWT, JOSE or absent, to the letter (JWT-SVID §2.3)', async () => {
    it = await fileFixture();
    for (const typ of ['JWT', 'JOSE', undefined]) {
      expect(await attest(await mint({ header: { typ } }))).toMatchObject({ tenant: 'acme' });
    }
    for (const typ of ['jwt', 'at+jwt', 'application/jwt']) {
      await expectRefusal(attest(await mint({ header: { typ } })), 'ATTESTATION_INVALID', /typ/);
    }
  });

  test.each([
    'spiffe://acme.test',
    'spiffe://acme.test/',
    'spiffe://acme.test//agent',
    'spiffe://acme.test/agent/',
    'spiffe://acme.test/./agent',
    'spiffe://acme.test/a/../agent',
    'spiffe://acme.test/%61gent',
    'spiffe://acme.test/agent?x=1',
    'spiffe://acme.test/agent#x',
    'spiffe://acme.test/agent x',
    'spiffe://acme.test/ägent',
    'spiffe://acme.test/agent\n',
    'spiffe://ACME.test/agent',
    'SPIFFE://acme.test/agent',
    'spiffe://acme.test:443/agent',
    'spiffe://user@acme.test/agent',
    'spiffe:///agent',
    'spiffe:/acme.test/agent',
    'https://acme.test/agent',
    `spiffe://acme.test/${'a'.repeat(2030)}`,
    'agent',
    '',
  ])('the subject %j is refused', async (sub) => {
    it = await fileFixture();
    await expectRefusal(attest(await mint({ sub })), 'ATTESTATION_INVALID', /SPIFFE ID/);
  });

  test('a subject that is absent or no text is refused, and one of 2048 bytes is accepted', async () => {
    it = await fileFixture();
    for (const sub of [undefined, null, 7, ['spiffe://acme.test/agent']]) {
      await expectRefusal(attest(await mint({ sub })), 'ATTESTATION_INVALID', /SPIFFE ID/);
    }
    const longest = `spiffe://acme.test/${'a'.repeat(2048 - 19)}`;
    expect(await attest(await mint({ sub: longest }))).toMatchObject({ workload: longest });
  });

  test('a trust domain that begins or ends like ours is another one', async () => {
    it = await fileFixture();
    for (const sub of [
      'spiffe://acme.test.evil.test/agent',
      'spiffe://evil.acme.test/agent',
      'spiffe://acme.tes/agent',
    ]) {
      expect(it.attestor.accepts({ iss: undefined, sub })).toBe(false);
      await expectRefusal(attest(await mint({ sub })), 'ISSUER_UNKNOWN', /another trust domain/);
    }
  });

  test('settings that would accept too much are refused at start', async () => {
    it = await fileFixture();
    const good = { trustDomain: 'acme.test', tenant: 'acme', audiences: [audience], maxLifetime: 1000, skew: 0 };
    const make = (change: Partial<typeof good>) => () =>
      createJwtSvidAttestor({ ...good, ...change, bundle: undefined as never });
    expect(make({})).not.toThrow();
    expect(make({ audiences: [] })).toThrow(/at least one audience/);
    expect(make({ audiences: [''] })).toThrow(/at least one audience/);
    expect(make({ skew: 60_001 })).toThrow(/skew/);
    expect(make({ skew: -1 })).toThrow(/skew/);
    expect(make({ skew: Number.NaN })).toThrow(/skew/);
    expect(make({ maxLifetime: 0 })).toThrow(/maxLifetime/);
    expect(make({ maxLifetime: Infinity })).toThrow(/maxLifetime/);
    expect(make({ trustDomain: 'Acme/x' })).toThrow(/trust domain/);
  });
});
