import { createHash, randomUUID } from 'node:crypto';
import { createLocalJWKSet, createRemoteJWKSet, errors, jwtVerify } from 'jose';
import type { JSONWebKeySet, JWTPayload, JWTVerifyGetKey } from 'jose';
import type { Clock, Instant, Millis } from '../domain/time.ts';
import { checkProof, ProofFault } from '../dpop/proof.ts';
import type { CheckedProof } from '../dpop/proof.ts';
import { createReplayStore } from '../dpop/replays.ts';
import type { ReplayStore } from '../dpop/replays.ts';
import { readClaims } from './claims.ts';
import type { VerifiedToken } from './claims.ts';
import { TokenRefused } from './errors.ts';
import type { RevocationFeed } from './feed.ts';

export interface VerifierOptions {
  /** The broker's issuer identifier. */
  issuer: string;
  /** This tool's resource identifier; a token must name it and nothing else. */
  audience: string;
  /** The broker's JWKS: its URL (https, or http on loopback), or the keys. */
  jwks: string | URL | JSONWebKeySet;
  /** Follower of the revocation feed (`followRevocations`), or `'none'`: revoked tokens then work until they expire. */
  feed: RevocationFeed | 'none';
  /** Oldest word of the feed that still counts; beyond it every token is refused. Not used with feed `'none'`. */
  stalenessBound?: Millis;
  clock?: Clock;
  /** How long fetched keys are kept: at most the broker's `cacheAge`. */
  jwksCacheAge?: Millis;
  /** Where used proofs are remembered: one of several servers of a tool needs one that they share (default: this process). */
  replays?: ReplayStore;
}

/** The request that a token came with, and its `DPoP` header: for tokens that are bound to a key (RFC 9449 §7). */
export interface PresentedProof {
  /** Value of the `DPoP` header; undefined or empty when there is none. Several headers are none. */
  proof: string | undefined;
  /** HTTP method of the request. */
  method: string;
  /** URL as the caller sees it; query and fragment do not count. */
  url: string;
  /** The nonce that this resource server asked for, where it asks for one (RFC 9449 §9). */
  nonce?: string;
}

/** The TLS client certificate of the connection, for tokens that are bound to one (RFC 8705 §3). */
export interface PresentedCertificate {
  /**
   * As DER: `socket.getPeerX509Certificate()?.raw`. Never from a header that a caller could have set: where a proxy ends TLS,
   * only from one that removes what callers send.
   */
  certificate: Uint8Array | undefined;
}

export type Presented = PresentedProof | PresentedCertificate | (PresentedProof & PresentedCertificate);

export interface Verifier {
  /**
   * Throws TokenRefused. A token that is bound is refused unless `presented` holds a proof of its key for this very request,
   * or its certificate: one that is taken without would be a bearer token after all. A tool that takes both kinds gives both.
   */
  verify(token: string, presented?: Presented): Promise<VerifiedToken>;
}

/** Clock difference that is allowed at `exp` and `nbf`. */
const skewSeconds = 60;
const maxTokenLength = 4096;
const defaultStalenessBound = 15_000;
const defaultCacheAge = 300_000;
const headerMembers = new Set(['alg', 'kid', 'typ']);

/** What a tool needs to trust an access token of the broker: RFC 9068 §4, then the revocation feed. */
export function createVerifier(options: VerifierOptions): Verifier {
  const { issuer, audience, feed } = options;
  const clock = options.clock ?? { now: Date.now };
  const stalenessBound = options.stalenessBound ?? defaultStalenessBound;
  const replays = options.replays ?? createReplayStore();
  const keys = keySource(options.jwks, options.jwksCacheAge ?? defaultCacheAge);

  return {
    async verify(token, presented) {
      checkForm(token);
      const now = clock.now();
      const payload = await checkSignature(token, keys, { issuer, audience, now });
      // RFC 7519 lets `aud` be a list; a credential of the broker is for one tool (design §3.2).
      if (payload.aud !== audience) throw new TokenRefused('audience', 'the token is not for this resource alone');
      const verified = readClaims(payload);
      const { boundBy, boundTo } = verified;
      if (boundBy === 'dpop') await checkPossession(token, boundTo!, presented, replays, now);
      if (boundBy === 'mtls') checkCertificate(boundTo!, presented);
      if (feed !== 'none') checkFeed(feed, verified, clock.now(), stalenessBound);
      return verified;
    },
  };
}

/** Before any cryptography: no more than it can be, and no header member that could steer verification (RFC 8725 §3.10). */
function checkForm(token: string): void {
  if (typeof token !== 'string' || token.length > maxTokenLength || !/^[\w-]+\.[\w-]+\.[\w-]+$/.test(token)) {
    throw new TokenRefused('malformed', 'not a compact JWS of acceptable size');
  }
  let header: unknown;
  try {
    header = JSON.parse(Buffer.from(token.slice(0, token.indexOf('.')), 'base64url').toString('utf8'));
  } catch {
    throw new TokenRefused('malformed', 'the header is not JSON');
  }
  if (header === null || typeof header !== 'object' || Array.isArray(header)) {
    throw new TokenRefused('malformed', 'the header is not an object');
  }
  const { alg, typ, kid } = header as Record<string, unknown>;
  if (alg !== 'ES256') throw new TokenRefused('algorithm', 'the algorithm must be ES256');
  if (typ !== 'at+jwt') throw new TokenRefused('type', 'the type must be at+jwt');
  if (typeof kid !== 'string') throw new TokenRefused('malformed', 'the header names no key');
  if (Object.keys(header).some((name) => !headerMembers.has(name))) {
    throw new TokenRefused('malformed', 'the header may hold alg, kid and typ only');
  }
}

async function checkSignature(
  token: string,
  keys: JWTVerifyGetKey,
  expected: { issuer: string; audience: string; now: Instant },
): Promise<JWTPayload> {
  try {
    const { payload } = await jwtVerify(token, keys, {
      algorithms: ['ES256'],
      typ: 'at+jwt',
      issuer: expected.issuer,
      audience: expected.audience,
      clockTolerance: skewSeconds,
      currentDate: new Date(expected.now),
      requiredClaims: ['iss', 'sub', 'aud', 'exp', 'iat', 'nbf', 'jti'],
    });
    return payload;
  } catch (error) {
    throw refusal(error);
  }
}

/** jose's errors by class; its messages name claims and never the token. */
function refusal(error: unknown): TokenRefused {
  if (error instanceof errors.JWTExpired) return new TokenRefused('expired', 'the token has expired', error);
  if (error instanceof errors.JWTClaimValidationFailed) {
    if (error.claim === 'iss') return new TokenRefused('issuer', 'the token is of another issuer', error);
    if (error.claim === 'aud') return new TokenRefused('audience', 'the token is for another resource', error);
    if (error.claim === 'nbf') return new TokenRefused('not_yet_valid', 'the token is not valid yet', error);
    return new TokenRefused('claims', `the claim ${error.claim} is missing or wrong`, error);
  }
  if (error instanceof errors.JWSSignatureVerificationFailed || error instanceof errors.JWKSNoMatchingKey) {
    return new TokenRefused('signature', 'no key of the issuer verifies the token', error);
  }
  if (error instanceof errors.JWSInvalid || error instanceof errors.JWTInvalid) {
    return new TokenRefused('malformed', 'not a well-formed JWT', error);
  }
  return new TokenRefused('keys_unavailable', "the issuer's keys cannot be had; try again later", error);
}

async function checkPossession(
  token: string,
  jkt: string,
  presented: Presented | undefined,
  replays: ReplayStore,
  now: Instant,
): Promise<void> {
  if (presented === undefined || !('proof' in presented) || presented.proof === undefined || presented.proof === '') {
    throw new TokenRefused('proof_missing', 'the token is bound to a key: send a proof of it in the header DPoP');
  }
  const { proof, method, url, nonce } = presented;
  let checked: CheckedProof;
  try {
    checked = await checkProof(proof, { method, url, now, accessToken: token, nonce });
  } catch (error) {
    if (!(error instanceof ProofFault)) throw error;
    throw new TokenRefused('proof_invalid', `the proof is not acceptable: ${error.message}`, error);
  }
  if (checked.jkt !== jkt) {
    throw new TokenRefused('proof_invalid', 'the proof is of another key than the one that the token is bound to');
  }
  // No request is the same as another here: a proof is good for one.
  const state = replays.use(checked, randomUUID(), now);
  if (state === 'full') throw new TokenRefused('proof_replayed', 'too many proofs within a minute; try again shortly');
  if (state === 'used')
    throw new TokenRefused('proof_replayed', 'the proof was used before: make one for each request');
}

function checkCertificate(thumbprint: string, presented: Presented | undefined): void {
  const certificate = presented !== undefined && 'certificate' in presented ? presented.certificate : undefined;
  if (certificate === undefined) {
    throw new TokenRefused(
      'proof_missing',
      'the token is bound to a client certificate: present it in the TLS handshake',
    );
  }
  if (createHash('sha256').update(certificate).digest('base64url') !== thumbprint) {
    throw new TokenRefused(
      'proof_invalid',
      'the connection has another certificate than the one that the token is bound to',
    );
  }
}

function checkFeed(feed: RevocationFeed, token: VerifiedToken, now: Instant, bound: Millis): void {
  const fresh = feed.freshAsOf();
  // Either way: a clock that was set back would make an old word look new.
  if (fresh === undefined || Math.abs(now - fresh) > bound) {
    throw new TokenRefused(
      'feed_stale',
      'the revocation feed has been silent for too long; nothing is accepted until it is back',
    );
  }
  if (feed.revoked(token)) throw new TokenRefused('revoked', 'the token was revoked');
}

function keySource(jwks: VerifierOptions['jwks'], cacheAge: Millis): JWTVerifyGetKey {
  if (typeof jwks === 'object' && !(jwks instanceof URL)) return createLocalJWKSet(jwks);
  const url = new URL(jwks);
  const loopback = ['localhost', '127.0.0.1', '[::1]'].includes(url.hostname);
  if (url.protocol !== 'https:' && !(url.protocol === 'http:' && loopback)) {
    throw new TypeError('jwks: must be an https URL (http only on loopback)');
  }
  return createRemoteJWKSet(url, { cacheMaxAge: cacheAge, cooldownDuration: 5_000, timeoutDuration: 5_000 });
}
