import { createHmac } from 'node:crypto';
import { createPublicKey, generateKeyPairSync } from 'node:crypto';
import type { KeyObject } from 'node:crypto';
import { once } from 'node:events';
import http from 'node:http';
import type { AddressInfo } from 'node:net';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import type { Attestor } from '../../src/domain/attestor.ts';
import type { Attestation } from '../../src/domain/caller.ts';
import { es256, expectRefusal, forge } from './attestor-forge.ts';
import type { ManualClock } from './attestor-forge.ts';

/** The rules that every fixture gives its attestor. */
export const limits = {
  maxLifetime: 3_600_000,
  skew: 30_000,
  staleAfter: 600_000,
  minRefresh: 10_000,
  timeout: 1_000,
} as const;
export const audience = 'https://leasehold.test';

export interface AttestorFixture {
  attestor: Attestor;
  clock: ManualClock;
  /** What the attestor must say of a good token, but for `expiresAt`. */
  expected: Omit<Attestation, 'expiresAt'>;
  /** A token from the real issuer. */
  genuine(): Promise<string>;
  /** `iss` and `sub` of a genuine token, and what else it needs besides times and audience. */
  identity: Record<string, unknown>;
  /** Wrong `iss` or trust domain: claims, and the refusal. */
  elsewhere: { claims: Record<string, unknown>; reason: 'ISSUER_UNKNOWN' | 'ATTESTATION_INVALID' };
  signingKey(): { kid: string; privateKey: KeyObject };
  /** These change what the issuer publishes. */
  rotate(options?: { keepOld?: boolean }): Promise<void>;
  empty(): Promise<void>;
  breakDown(): Promise<void>;
  mend(): Promise<void>;
  close(): Promise<void>;
}

/** What every attestor must do, over the real parts of a fixture (faults 15 and 16). */
export function attestorSuite(name: string, setUp: () => Promise<AttestorFixture>): void {
  describe(`attestor contract: ${name}`, () => {
    let it: AttestorFixture;
    beforeEach(async () => {
      it = await setUp();
    });
    afterEach(() => it.close());

    const seconds = (ms = 0) => Math.floor((it.clock.now() + ms) / 1000);
    const goodHeader = () => ({ alg: 'ES256', typ: 'JWT', kid: it.signingKey().kid });
    const goodClaims = () => ({ ...it.identity, aud: audience, iat: seconds(), exp: seconds(300_000) });
    /** Signed by the issuer's own key; a member set to undefined is left out. */
    const token = (claims: Record<string, unknown> = {}, header: Record<string, unknown> = {}) =>
      forge({
        header: { ...goodHeader(), ...header },
        claims: { ...goodClaims(), ...claims },
        privateKey: it.signingKey().privateKey,
      });
    const attest = (text: string) => it.attestor.attest(text, it.clock.now());
    const refused = (text: string, sentence: RegExp) => expectRefusal(attest(text), 'ATTESTATION_INVALID', sentence);
    /** Lets the attestor look again: a token with an unknown `kid` makes it, as soon as it may. */
    const notice = async () => {
      it.clock.advance(limits.minRefresh);
      await attest(token({}, { kid: 'nobody' })).catch(() => undefined);
    };

    test('a genuine token says who calls, for which tenant and until when', async () => {
      const genuine = await it.genuine();
      const { exp } = JSON.parse(Buffer.from(genuine.split('.')[1]!, 'base64url').toString()) as { exp: number };
      expect(await attest(genuine)).toEqual({ ...it.expected, expiresAt: exp * 1000 });
    });

    test('a forged token without any fault is accepted, so that each refusal below has the one cause it names', async () => {
      expect(await attest(token())).toMatchObject(it.expected);
    });

    test('it accepts claims of its own issuer or trust domain only', () => {
      const { iss, sub } = it.identity as { iss?: string; sub?: string };
      expect(it.attestor.accepts({ iss, sub })).toBe(true);
      expect(it.attestor.accepts({ iss: `${iss}/`, sub: 'spiffe://acme.test.evil.test/agent' })).toBe(false);
      expect(it.attestor.accepts({ iss: undefined, sub: undefined })).toBe(false);
    });

    describe('fault 15: attacks by token', () => {
      test('alg none is refused, with and without a signature', async () => {
        const [header, claims] = token({}, { alg: 'none' }).split('.');
        await refused(`${header}.${claims}.`, /base64url/);
        await refused(token({}, { alg: 'none' }), /algorithm/);
        await refused(token({}, { alg: 'None' }), /algorithm/);
        await refused(token({}, { alg: undefined }), /no `alg`/);
      });

      test('HS256 signed with the public key is refused', async () => {
        const { privateKey } = it.signingKey();
        const [header, claims] = token({}, { alg: 'HS256' }).split('.');
        for (const format of ['pem', 'der'] as const) {
          const secret = createPublicKey(privateKey).export({ type: 'spki', format } as {
            type: 'spki';
            format: 'pem';
          });
          const mac = createHmac('sha256', secret).update(`${header}.${claims}`).digest('base64url');
          await refused(`${header}.${claims}.${mac}`, /algorithm/);
        }
      });

      test('an algorithm that is allowed but is not of the key is refused', async () => {
        await refused(token({}, { alg: 'RS256' }), /key that its issuer does not publish/);
      });

      test('jku, jwk, x5u, x5c and crit headers are refused, and nothing is fetched', async () => {
        let fetched = 0;
        const bait = http.createServer((_request, response) => {
          fetched += 1;
          response.end('{}');
        });
        bait.listen(0, '127.0.0.1');
        await once(bait, 'listening');
        const url = `http://127.0.0.1:${(bait.address() as AddressInfo).port}/keys`;
        const own = generateKeyPairSync('ec', { namedCurve: 'P-256' });
        const members: Record<string, unknown> = {
          jku: url,
          jwk: own.publicKey.export({ format: 'jwk' }),
          x5u: url,
          x5c: ['MIIB'],
          crit: ['exp'],
          b64: true,
        };
        for (const [member, value] of Object.entries(members)) {
          await refused(token({}, { [member]: value }), /header has/);
        }
        const header = { ...goodHeader(), kid: 'mine', jwk: members['jwk'] };
        await refused(forge({ header, claims: goodClaims(), privateKey: own.privateKey }), /header has/);
        expect(fetched).toBe(0);
        bait.close();
      });

      test('another kind of token is refused by its typ', async () => {
        for (const typ of ['logout+jwt', 'dpop+jwt', 'JWE', '', 7, null]) await refused(token({}, { typ }), /typ/);
      });

      test('a wrong audience, none, or one that is not text is refused', async () => {
        await refused(token({ aud: 'https://other.test' }), /another audience/);
        await refused(token({ aud: ['https://other.test', `${audience}/`] }), /another audience/);
        for (const aud of [undefined, [], null, 7, [audience, 7], { 0: audience }]) {
          await refused(token({ aud }), /no audience/);
        }
        expect(await attest(token({ aud: ['https://other.test', audience] }))).toMatchObject(it.expected);
      });

      test('a wrong issuer or trust domain is refused, though signed by a trusted key', async () => {
        await expectRefusal(attest(token(it.elsewhere.claims)), it.elsewhere.reason, /another|sub/);
      });

      test('no exp is refused', async () => {
        await refused(token({ exp: undefined }), /never expires/);
        for (const exp of ['9999999999', null, -1, 1e300, [], true]) await refused(token({ exp }), /NumericDate/);
      });

      test('exp in a year is refused', async () => {
        await refused(token({ exp: seconds(365 * 86_400_000) }), /lives longer/);
        await refused(token({ iat: undefined, exp: seconds(365 * 86_400_000) }), /lives longer/);
        await refused(token({ iat: undefined, exp: seconds(limits.maxLifetime + limits.skew) + 1 }), /lives longer/);
        // Dated ahead within the skew, it would win that much more.
        const ahead = { iat: seconds(limits.skew), exp: seconds(limits.maxLifetime + 2 * limits.skew) };
        await refused(token(ahead), /lives longer/);
        const longest = token({ iat: undefined, exp: seconds(limits.maxLifetime + limits.skew) });
        expect(await attest(longest)).toMatchObject(it.expected);
      });

      test('a token that lived for a year is refused in its last hour too', async () => {
        await refused(token({ iat: seconds(-365 * 86_400_000), exp: seconds(600_000) }), /lives longer/);
      });

      test('an expired token is refused, once the skew is over', async () => {
        await expectRefusal(
          attest(token({ iat: undefined, exp: seconds(-limits.skew) })),
          'ATTESTATION_EXPIRED',
          /expired/,
        );
        expect(await attest(token({ iat: undefined, exp: seconds(-limits.skew) + 1 }))).toMatchObject(it.expected);
      });

      test('a token that is not valid yet is refused, but for the skew', async () => {
        for (const claim of ['nbf', 'iat']) {
          await refused(token({ [claim]: seconds(limits.skew) + 1 }), /not valid yet/);
          expect(await attest(token({ [claim]: seconds(limits.skew) }))).toMatchObject(it.expected);
          await refused(token({ [claim]: 'yesterday' }), /NumericDate/);
        }
      });

      test('an embedded NUL is refused, raw or escaped, in a name or a value, in the header or the payload', async () => {
        const { privateKey } = it.signingKey();
        const header = JSON.stringify(goodHeader());
        const claims = JSON.stringify(goodClaims());
        const nul = String.raw`\u0000`;
        for (const member of [`"a":"${nul}"`, `"a${nul}":1`, `"a":["x","${nul}y"]`]) {
          await refused(forge({ header, claims: `{${member},${claims.slice(1)}`, privateKey }), /payload holds a NUL/);
        }
        await refused(forge({ header: `{"alg":"ES256","kid":"${nul}"}`, claims, privateKey }), /header holds a NUL/);
        await refused(forge({ header, claims: `{"a":"\0",${claims.slice(1)}`, privateKey }), /payload is not JSON/);
        await refused(`${token()}\0`, /base64url/);
        await refused(`\0${token()}`, /base64url/);
      });

      test('a token of 1 MB is refused before anything is parsed', async () => {
        await refused(token({ padding: 'x'.repeat(1_000_000) }), /longer than 8192/);
        await refused('.'.repeat(1_000_000), /longer than 8192/);
        await refused('x'.repeat(8193), /longer than 8192/);
        await refused('x'.repeat(8192), /three parts/);
      });

      test('members named twice are refused, at any depth and however they are written', async () => {
        const { privateKey } = it.signingKey();
        const header = JSON.stringify(goodHeader());
        const claims = JSON.stringify(goodClaims());
        for (const twice of [
          `{"sub":"spiffe://acme.test/other",${claims.slice(1)}`,
          `{"exp":1,${claims.slice(1)}`,
          String.raw`{"\u0061ud":"x",${claims.slice(1)}`,
          `{"deep":[{"a":{"b":1,"c":"}{","b":2}}],${claims.slice(1)}`,
        ]) {
          await refused(forge({ header, claims: twice, privateKey }), /payload names a member twice/);
        }
        await refused(
          forge({ header: `{"alg":"ES256",${header.slice(1)}`, claims, privateKey }),
          /header names a member/,
        );
        // The same name in different objects is no duplicate.
        expect(await attest(token({ a: { b: 1 }, c: [{ b: 1 }, { b: ',"b":' }] }))).toMatchObject(it.expected);
      });

      test('a kid that is a path, empty, too long or no text is refused', async () => {
        for (const kid of ['../../', '../../../etc/passwd', '/dev/null', '__proto__', "' OR 1=1 --", 'constructor']) {
          await refused(token({}, { kid }), /does not publish/);
        }
        for (const kid of ['', 'x'.repeat(257), 7, null, ['a']]) await refused(token({}, { kid }), /`kid`/);
      });

      test('a token without kid is tried against the few keys that fit', async () => {
        expect(await attest(token({}, { kid: undefined }))).toMatchObject(it.expected);
        const { privateKey } = generateKeyPairSync('ec', { namedCurve: 'P-256' });
        const header = { alg: 'ES256', typ: 'JWT' };
        await refused(forge({ header, claims: goodClaims(), privateKey }), /signature is wrong/);
      });

      test('a signature by another key under a known kid is refused', async () => {
        const { privateKey } = generateKeyPairSync('ec', { namedCurve: 'P-256' });
        await refused(forge({ header: goodHeader(), claims: goodClaims(), privateKey }), /signature is wrong/);
      });

      test('claims changed after signing are refused', async () => {
        const [header, , signature] = token().split('.');
        const changed = Buffer.from(JSON.stringify({ ...goodClaims(), more: true })).toString('base64url');
        await refused(`${header}.${changed}.${signature}`, /signature is wrong/);
      });

      test('one token has one spelling: padding, spare bits, blanks and other alphabets are refused', async () => {
        const good = token();
        const [header, claims, signature] = good.split('.') as [string, string, string];
        // 64 bytes are 86 characters: the last carries four spare bits, which must be zero.
        const last = signature.at(-1)!;
        const alphabet = 'ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_';
        const spare = alphabet[alphabet.indexOf(last) + 1];
        for (const other of [
          `${good}==`,
          `${good}\n`,
          ` ${good}`,
          `${header}.${claims.slice(0, 5)} ${claims.slice(5)}.${signature}`,
          `${header}.${claims}.${signature.slice(0, -1)}${spare}`,
          `${header}..${signature}`,
          `${header}.${claims}.`,
        ]) {
          await refused(other, /base64url/);
        }
        for (const other of ['', 'x', `${header}.${claims}`, `${good}.`, `${good}.x.y`]) {
          await refused(other, /three parts/);
        }
      });

      test('parts that are not JSON objects in UTF-8 are refused', async () => {
        const { privateKey } = it.signingKey();
        const header = JSON.stringify(goodHeader());
        const claims = JSON.stringify(goodClaims());
        const cases: [string | Buffer, RegExp][] = [
          ['[]', /not a JSON object/],
          ['null', /not a JSON object/],
          ['"x"', /not a JSON object/],
          [`${claims}x`, /not JSON/],
          [`\ufeff${claims}`, /not JSON/],
          [`{"a":${'['.repeat(40)}${']'.repeat(40)},${claims.slice(1)}`, /nested deeper/],
          [String.raw`{"a":"\ud800",${claims.slice(1)}`, /surrogate/],
          [Buffer.concat([Buffer.from('{"a":"'), Buffer.from([0xff]), Buffer.from(`",${claims.slice(1)}`)]), /UTF-8/],
        ];
        for (const [text, sentence] of cases) await refused(forge({ header, claims: text, privateKey }), sentence);
      });

      test('a signature of the wrong length is refused and breaks nothing', async () => {
        const [header, claims] = token().split('.');
        for (const bytes of [1, 63, 65, 512]) {
          await refused(`${header}.${claims}.${Buffer.alloc(bytes, 1).toString('base64url')}`, /signature is wrong/);
        }
        const der = es256(`${header}.${claims}`, it.signingKey().privateKey);
        expect(await attest(`${header}.${claims}.${der}`)).toMatchObject(it.expected);
      });
    });

    describe('fault 16: keys that move, fail or vanish', () => {
      test('endpoint down: the last good keys serve up to the bound, then every token is refused', async () => {
        await attest(token());
        await it.breakDown();
        it.clock.advance(limits.staleAfter);
        expect(it.attestor.fresh(it.clock.now())).toBe(true);
        expect(await attest(token())).toMatchObject(it.expected);
        it.clock.advance(1);
        expect(it.attestor.fresh(it.clock.now())).toBe(false);
        await expectRefusal(attest(token()), 'KEYS_STALE', /out of date/);
        expect(it.attestor.status(it.clock.now())).toMatchObject({
          ready: false,
          detail: expect.stringMatching(/failed/),
        });
        await it.mend();
        it.clock.advance(limits.minRefresh);
        expect(await attest(token())).toMatchObject(it.expected);
        expect(it.attestor.status(it.clock.now())).toMatchObject({
          ready: true,
          detail: expect.not.stringMatching(/failed|beyond/),
        });
      });

      test('rotated: a token by a new key is accepted at once, and one by a dropped key no more', async () => {
        const old = token();
        await attest(old);
        const before = it.attestor.generation();
        await it.rotate();
        it.clock.advance(limits.minRefresh);
        expect(await attest(token())).toMatchObject(it.expected);
        expect(it.attestor.generation()).toBeGreaterThan(before);
        await refused(old, /does not publish/);
      });

      test('rotated with overlap: tokens by either key are accepted', async () => {
        const old = token();
        await attest(old);
        await it.rotate({ keepOld: true });
        it.clock.advance(limits.minRefresh);
        expect(await attest(token())).toMatchObject(it.expected);
        expect(await attest(old)).toMatchObject(it.expected);
      });

      test('rotated: a token without kid by the new key is accepted as well', async () => {
        await attest(token());
        await it.rotate();
        it.clock.advance(limits.minRefresh);
        expect(await attest(token({}, { kid: undefined }))).toMatchObject(it.expected);
      });

      test('emptied: nothing is trusted any more', async () => {
        const good = token();
        await attest(good);
        const before = it.attestor.generation();
        await it.empty();
        await notice();
        expect(it.attestor.generation()).toBeGreaterThan(before);
        await refused(good, /does not publish/);
        expect(it.attestor.status(it.clock.now())).toMatchObject({
          ready: false,
          detail: expect.stringMatching(/nothing is trusted/),
        });
      });

      test('the generation stays while the keys do', async () => {
        await attest(token());
        const before = it.attestor.generation();
        await notice();
        await notice();
        expect(it.attestor.generation()).toBe(before);
      });
    });
  });
}
