import { generateKeyPairSync } from 'node:crypto';
import { afterEach, describe, expect, test } from 'vitest';
import { createOidcAttestor } from '../../../src/attestors/oidc/attestor.ts';
import { jwksUriOf } from '../../../src/attestors/oidc/oidc-keys.ts';
import type { OidcOptions } from '../../../src/attestors/oidc/attestor.ts';
import { startHttpsEndpoint } from '../../support/bundle-server.ts';
import { startOidcProvider, testClientId } from '../../support/oidc.ts';
import type { TestOidcOptions, TestOidcProvider } from '../../support/oidc.ts';
import { expectRefusal, forge, manualClock } from '../attestor-forge.ts';
import { attestorSuite, audience, limits } from '../attestor-suite.ts';
import type { AttestorFixture } from '../attestor-suite.ts';

interface OidcFixture extends AttestorFixture {
  provider: TestOidcProvider;
}

async function oidcFixture(change: Partial<OidcOptions> = {}, issuing: TestOidcOptions = {}): Promise<OidcFixture> {
  const provider = await startOidcProvider({ claims: { repository_id: '42' }, ...issuing });
  const clock = manualClock();
  const attestor = createOidcAttestor({
    issuer: provider.issuer,
    tenant: 'acme',
    audiences: [audience, testClientId],
    requiredClaims: {},
    workload: 'spiffe://acme.test/ci/{sub}',
    clock,
    ...limits,
    ...change,
  });
  return {
    provider,
    attestor,
    clock,
    expected: { workload: 'spiffe://acme.test/ci/ci-runner', tenant: 'acme', kind: 'oidc', issuer: provider.issuer },
    genuine: () => provider.accessToken(audience),
    identity: { iss: provider.issuer, sub: testClientId },
    elsewhere: { claims: { iss: `${provider.issuer}/` }, reason: 'ISSUER_UNKNOWN' },
    signingKey: provider.signingKey,
    rotate: async (options) => provider.rotate(options),
    empty: async () =>
      provider.intercept((request, response) => {
        const discovery = { issuer: provider.issuer, jwks_uri: provider.jwksUri };
        response.end(JSON.stringify(request.url === '/jwks' ? { keys: [] } : discovery));
      }),
    breakDown: async () => provider.intercept((request) => request.socket.destroy()),
    mend: async () => provider.intercept(undefined),
    async close() {
      await attestor.close();
      await provider.close();
    },
  };
}

attestorSuite('OIDC by discovery', () => oidcFixture());

describe('OIDC', () => {
  const opened: { close(): Promise<void> }[] = [];
  afterEach(async () => {
    for (const one of opened.splice(0).reverse()) await one.close();
  });
  const open = async (change?: Partial<OidcOptions>, issuing?: TestOidcOptions) => {
    const fixture = await oidcFixture(change, issuing);
    opened.push(fixture);
    return fixture;
  };
  const attest = (it: OidcFixture, token: string) => it.attestor.attest(token, it.clock.now());
  const signed = (it: OidcFixture, claims: Record<string, unknown> = {}, header: Record<string, unknown> = {}) => {
    const now = Math.floor(it.clock.now() / 1000);
    return forge({
      header: { alg: 'ES256', kid: it.signingKey().kid, ...header },
      claims: { ...it.identity, aud: audience, iat: now, exp: now + 300, ...claims },
      privateKey: it.signingKey().privateKey,
    });
  };

  test.each(['RS256', 'ES256'] as const)(
    'access tokens and ID tokens signed with %s are accepted',
    async (algorithm) => {
      const it = await open({}, { algorithm });
      expect(await attest(it, await it.provider.accessToken(audience))).toMatchObject(it.expected);
      expect(await attest(it, await it.provider.idToken('alice'))).toMatchObject({
        workload: 'spiffe://acme.test/ci/alice',
      });
    },
  );

  test('an algorithm that the operator did not list is refused', async () => {
    const it = await open({ algorithms: ['RS256', 'EdDSA'] });
    await expectRefusal(attest(it, await it.genuine()), 'ATTESTATION_INVALID', /Use RS256 or EdDSA/);
  });

  test('an access token for another resource is refused', async () => {
    const it = await open();
    const token = await it.provider.accessToken('https://other.test');
    await expectRefusal(attest(it, token), 'ATTESTATION_INVALID', /another audience/);
  });

  test('groups are taken only from the claim that the operator names, and only as texts', async () => {
    const groups = ['security', '', 7, ['nested'], 'x'.repeat(257), 'team/ops'];
    const it = await open({ groupsClaim: 'realm.groups' });
    expect(await attest(it, signed(it, { realm: { groups } }))).toMatchObject({ groups: ['security', 'team/ops'] });
    expect(await attest(it, signed(it, { realm: { groups: 'security' } }))).toMatchObject({ groups: ['security'] });
    expect(await attest(it, signed(it))).toMatchObject({ groups: [] });
    const without = await open();
    expect(await attest(without, signed(without, { groups: ['security'] }))).not.toHaveProperty('groups');
  });

  test('required claims must each have one of the stated values', async () => {
    const required = { repository_id: ['41', '42'], scope: 'call' };
    const it = await open({ requiredClaims: required });
    expect(await attest(it, await it.genuine())).toMatchObject(it.expected);
    for (const change of [
      { repository_id: '43', scope: 'call' },
      { repository_id: '42', scope: 'call more' },
      { repository_id: '42' },
      { repository_id: ['43'], scope: 'call' },
      { repository_id: null, scope: 'call' },
      { repository_id: { '42': '42' }, scope: 'call' },
    ]) {
      await expectRefusal(attest(it, signed(it, change)), 'ATTESTATION_INVALID', /not one that this broker accepts/);
    }
    for (const repository_id of [42, ['7', '42']]) {
      expect(await attest(it, signed(it, { repository_id, scope: 'call' }))).toMatchObject(it.expected);
    }
  });

  test('a required claim is found by its literal name first, then as a path through names with dots', async () => {
    const it = await open({ requiredClaims: { 'kubernetes.io.namespace': 'payments' } });
    const accepted = [
      { 'kubernetes.io.namespace': 'payments', 'kubernetes.io': { namespace: 'other' } },
      { 'kubernetes.io': { namespace: 'payments' } },
      { kubernetes: { io: { namespace: 'payments' } } },
    ];
    for (const claims of accepted) expect(await attest(it, signed(it, claims))).toMatchObject(it.expected);
    for (const claims of [
      { 'kubernetes.io.namespace': 'other', 'kubernetes.io': { namespace: 'payments' } },
      { 'kubernetes.io': { namespace: 'other' } },
      { 'kubernetes.io': 'payments' },
      { namespace: 'payments' },
    ]) {
      await expectRefusal(attest(it, signed(it, claims)), 'ATTESTATION_INVALID', /kubernetes.io.namespace/);
    }
  });

  test('what every object inherits is no claim', async () => {
    const it = await open({ requiredClaims: { 'constructor.name': 'Object' } });
    await expectRefusal(attest(it, await it.genuine()), 'ATTESTATION_INVALID', /constructor.name/);
  });

  test('the workload is made of claims, and one that is missing is refused', async () => {
    const it = await open({ workload: 'spiffe://acme.test/github/{repository_id}/{job_workflow_ref}' });
    const job_workflow_ref = 'octo/app/.github/workflows/ship_it.yml@refs/heads/main';
    expect(await attest(it, signed(it, { repository_id: 42, job_workflow_ref }))).toMatchObject({
      workload: 'spiffe://acme.test/github/42/octo_2fapp_2f.github_2fworkflows_2fship__it.yml_40refs_2fheads_2fmain',
    });
    await expectRefusal(attest(it, signed(it, { repository_id: 42 })), 'ATTESTATION_INVALID', /`job_workflow_ref`/);
  });

  test('typ is compared without regard to case (RFC 7515 §4.1.9) and may be absent', async () => {
    const it = await open();
    for (const typ of ['JWT', 'jwt', 'at+jwt', 'AT+JWT', 'application/at+jwt', undefined]) {
      expect(await attest(it, signed(it, {}, { typ }))).toMatchObject(it.expected);
    }
  });

  test('header members that carry no key and no rule are let be, since issuers send them', async () => {
    const it = await open();
    expect(await attest(it, signed(it, {}, { x5t: 'abc', cty: 'x' }))).toMatchObject(it.expected);
  });

  test('only a token whose key is unknown makes the attestor ask for newer keys', async () => {
    const it = await open();
    await attest(it, signed(it));
    const before = it.provider.requests();
    it.clock.advance(limits.minRefresh);
    const good = signed(it);
    await expectRefusal(attest(it, `${good.slice(0, -8)}AAAAAAAA`), 'ATTESTATION_INVALID', /signature is wrong/);
    await expectRefusal(attest(it, signed(it, { aud: 'x' }, { kid: 'x' })), 'ATTESTATION_INVALID', /audience/);
    expect(it.provider.requests()).toBe(before);
    await expectRefusal(attest(it, signed(it, {}, { kid: 'x' })), 'ATTESTATION_INVALID', /does not publish/);
    expect(it.provider.requests()).toBe(before + 2);
  });

  test('keys for encryption verify nothing', async () => {
    const it = await open();
    const jwks = await fetch(it.provider.jwksUri).then((response) => response.json() as Promise<{ keys: object[] }>);
    it.provider.intercept((request, response) => {
      const keys = jwks.keys.map((key) => ({ ...key, use: 'enc' }));
      const discovery = { issuer: it.provider.issuer, jwks_uri: it.provider.jwksUri };
      response.end(JSON.stringify(request.url === '/jwks' ? { keys } : discovery));
    });
    it.clock.advance(limits.minRefresh);
    await attest(it, signed(it, {}, { kid: 'nobody' })).catch(() => undefined);
    await expectRefusal(attest(it, signed(it)), 'ATTESTATION_INVALID', /does not publish/);
  });

  test('an issuer over https is believed by the given roots alone', async () => {
    const clock = manualClock();
    const { publicKey, privateKey } = generateKeyPairSync('ec', { namedCurve: 'P-256' });
    const endpoint = await startHttpsEndpoint((request, response) => {
      const issuer = `https://${request.headers.host}`;
      const keys = [{ ...publicKey.export({ format: 'jwk' }), kid: 'a' }];
      response.end(JSON.stringify(request.url === '/jwks' ? { keys } : { issuer, jwks_uri: `${issuer}/jwks` }));
    });
    opened.push(endpoint);
    const make = (caFile: string | undefined) => {
      const attestor = createOidcAttestor({ ...settings, issuer: endpoint.url, caFile, clock });
      opened.push(attestor);
      return attestor;
    };
    const exp = Math.floor(clock.now() / 1000) + 300;
    const claims = { iss: endpoint.url, sub: 'x', aud: audience, exp };
    const token = forge({ header: { alg: 'ES256', kid: 'a' }, claims, privateKey });
    expect(await make(endpoint.caFile).attest(token, clock.now())).toMatchObject({ workload: 'x' });
    await expectRefusal(make(undefined).attest(token, clock.now()), 'KEYS_STALE', /out of date/);
  });

  test('with jwksUri nothing is discovered', async () => {
    const provider = await startOidcProvider();
    opened.push(provider);
    const keys = await fetch(provider.jwksUri).then((response) => response.text());
    const paths: string[] = [];
    provider.intercept((request, response) => {
      paths.push(request.url ?? '');
      response.end(keys);
    });
    const clock = manualClock();
    const attestor = createOidcAttestor({
      ...{ issuer: 'https://ci.test', jwksUri: provider.jwksUri, tenant: 'acme', audiences: [audience] },
      ...{ requiredClaims: {}, workload: 'ci/{sub}', clock, ...limits },
    });
    opened.push(attestor);
    const now = Math.floor(clock.now() / 1000);
    const { kid, privateKey } = provider.signingKey();
    const claims = { iss: 'https://ci.test', sub: 'x', aud: audience, exp: now + 300 };
    const token = forge({ header: { alg: 'ES256', kid }, claims, privateKey });
    expect(await attestor.attest(token, clock.now())).toMatchObject({ workload: 'ci/x' });
    expect(paths).toEqual(['/jwks']);
  });

  test.each([
    [
      'names another issuer',
      (issuer: string) => ({ issuer: `${issuer}/`, jwks_uri: `${issuer}/jwks` }),
      /another issuer/,
    ],
    ['has no jwks_uri', (issuer: string) => ({ issuer }), /no jwks_uri/],
    [
      'names keys over http elsewhere',
      (issuer: string) => ({ issuer, jwks_uri: 'http://keys.test/' }),
      /must be https/,
    ],
    ['names a file', (issuer: string) => ({ issuer, jwks_uri: 'file:///etc/passwd' }), /must be https/],
    ['names no URL', (issuer: string) => ({ issuer, jwks_uri: 'keys' }), /not a URL/],
  ])('a discovery document that %s is refused, and no key is trusted', async (_what, document, detail) => {
    const provider = await startOidcProvider();
    opened.push(provider);
    provider.intercept((_request, response) => response.end(JSON.stringify(document(provider.issuer))));
    const clock = manualClock();
    const attestor = createOidcAttestor({
      ...{ issuer: provider.issuer, tenant: 'acme', audiences: [audience], requiredClaims: {}, workload: '{sub}' },
      ...{ clock, ...limits },
    });
    opened.push(attestor);
    const now = Math.floor(clock.now() / 1000);
    const { kid, privateKey } = provider.signingKey();
    const claims = { iss: provider.issuer, sub: 'x', aud: audience, exp: now + 300 };
    const token = forge({ header: { alg: 'ES256', kid }, claims, privateKey });
    await expectRefusal(attestor.attest(token, clock.now()), 'KEYS_STALE', /out of date/);
    expect(attestor.status(clock.now())).toMatchObject({ ready: false, detail: expect.stringMatching(detail) });
  });

  test('only an issuer on this machine may have its keys over http', () => {
    const jwks_uri = 'http://127.0.0.1/jwks';
    for (const issuer of ['http://[::1]:8080', 'http://localhost:8080', 'https://127.0.0.1']) {
      expect(jwksUriOf({ issuer, jwks_uri }, issuer).href).toBe(jwks_uri);
    }
    expect(() => jwksUriOf({ issuer: 'https://ci.test', jwks_uri }, 'https://ci.test')).toThrow(/must be https/);
  });

  const settings: OidcOptions = {
    issuer: 'https://ci.test',
    tenant: 'acme',
    audiences: [audience],
    requiredClaims: {},
    workload: '{sub}',
    clock: manualClock(),
    ...limits,
  };

  test.each<[string, Partial<OidcOptions>, RegExp]>([
    ['HS256', { algorithms: ['RS256', 'HS256'] }, /algorithms must be/],
    ['none', { algorithms: ['none'] }, /algorithms must be/],
    ['no algorithm', { algorithms: [] }, /algorithms must be/],
    ['no audience', { audiences: [] }, /at least one audience/],
    ['a skew over a minute', { skew: 60_001 }, /skew/],
    ['an issuer over http', { issuer: 'http://ci.test' }, /must be https/],
    ['an issuer that merely begins like loopback', { issuer: 'http://127.0.0.1.evil.test' }, /must be https/],
    ['an issuer with a user', { issuer: 'https://me@ci.test' }, /user or password/],
    ['an issuer with a query', { issuer: 'https://ci.test/?x' }, /neither query nor fragment/],
    ['an issuer that is no URL', { issuer: 'ci' }, /not a URL/],
    ['keys over http', { jwksUri: 'http://ci.test/jwks' }, /must be https/],
    ['a template without claims', { workload: 'spiffe://acme.test/ci' }, /names no claim/],
  ])('settings with %s are refused at start', (_what, change, sentence) => {
    expect(() => createOidcAttestor({ ...settings, ...change })).toThrow(sentence);
  });
});
