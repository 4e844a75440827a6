import { BrokerError } from '../../domain/errors.ts';
import type { Instant, Millis } from '../../domain/time.ts';
import { invalid } from './refusal.ts';

type Claims = Readonly<Record<string, unknown>>;

export interface TimeRules {
  now: Instant;
  /** How far the issuer's clock may be from ours. */
  skew: Millis;
  /** Longest life that a token may have. */
  maxLifetime: Millis;
}

/** RFC 7519 §4.1.3: at least one of the token's audiences is us. */
export function checkAudience(claims: Claims, audiences: ReadonlySet<string>): void {
  const { aud } = claims;
  const named: unknown[] = Array.isArray(aud) ? aud : [aud];
  if (named.length === 0 || !named.every((one) => typeof one === 'string')) {
    throw invalid(`The attestation has no audience. Ask for a token for ${[...audiences].join(' or ')}.`);
  }
  if (!named.some((one) => audiences.has(one as string))) {
    throw invalid(`The attestation is for another audience. Ask for a token for ${[...audiences].join(' or ')}.`);
  }
}

/** RFC 7519 §4.1.4 to §4.1.6, and an upper bound on life: a token that lives for a year is a password. Returns `exp`. */
export function checkTimes(claims: Claims, { now, skew, maxLifetime }: TimeRules): Instant {
  const expiresAt = instant(claims, 'exp');
  const notBefore = instant(claims, 'nbf');
  const issuedAt = instant(claims, 'iat');
  if (expiresAt === undefined) throw invalid('The attestation never expires. Get a token that has `exp`.');
  if (now >= expiresAt + skew) {
    throw new BrokerError('ATTESTATION_EXPIRED', 'The attestation has expired. Get a new token and call again.');
  }
  for (const [name, from] of [['nbf', notBefore] as const, ['iat', issuedAt] as const]) {
    if (from !== undefined && from > now + skew) {
      throw invalid(`The attestation is not valid yet (\`${name}\`). Wait, or set the clocks right.`);
    }
  }
  // `iat` too: otherwise a long token would be refused while young and accepted in its last hour.
  const start = issuedAt === undefined ? now : Math.min(issuedAt, now);
  if (expiresAt - start > maxLifetime + skew) {
    throw invalid(
      `The attestation lives longer than the ${Math.floor(maxLifetime / 1000)} s allowed. Get a shorter-lived token.`,
    );
  }
  return expiresAt;
}

function instant(claims: Claims, name: 'exp' | 'nbf' | 'iat'): Instant | undefined {
  const seconds = claims[name];
  if (seconds === undefined) return undefined;
  if (typeof seconds !== 'number' || !(seconds >= 0) || seconds > Number.MAX_SAFE_INTEGER / 1000) {
    throw invalid(`The attestation's \`${name}\` is not a number of seconds. Get a token with a plain NumericDate.`);
  }
  return seconds * 1000;
}
