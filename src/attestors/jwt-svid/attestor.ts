import type { Attestor } from '../../domain/attestor.ts';
import { BrokerError } from '../../domain/errors.ts';
import type { Millis } from '../../domain/time.ts';
import type { KeySource } from '../keys/key-source.ts';
import { svidAlgorithms } from '../keys/verification-key.ts';
import { verifySignature } from '../keys/verify-token.ts';
import { checkSettings } from '../settings.ts';
import { isTrustDomainName, parseSpiffeId } from '../spiffe-id.ts';
import { checkAudience, checkTimes } from '../token/check-claims.ts';
import { parseToken } from '../token/parse-token.ts';
import { invalid } from '../token/refusal.ts';

export interface JwtSvidOptions {
  trustDomain: string;
  tenant: string;
  audiences: string[];
  /** The trust domain's keys; closed with the attestor. */
  bundle: KeySource;
  maxLifetime: Millis;
  /** At most 60 s. */
  skew: Millis;
}

const headerMembers = new Set(['alg', 'kid', 'typ']);
const algorithms: ReadonlySet<string> = new Set(svidAlgorithms);

/** Verifies JWT-SVIDs of one trust domain (the SPIFFE JWT-SVID specification). */
export function createJwtSvidAttestor(options: JwtSvidOptions): Attestor {
  const { trustDomain, tenant, bundle, maxLifetime, skew } = options;
  const name = `trust-domain/${trustDomain}`;
  checkSettings(name, options);
  if (!isTrustDomainName(trustDomain)) throw new Error(`${name}: not the name of a trust domain (a-z, 0-9, . _ -)`);
  const audiences = new Set(options.audiences);

  return {
    name,
    accepts: ({ sub }) => sub !== undefined && sub.startsWith(`spiffe://${trustDomain}/`),
    async attest(token, now) {
      const parsed = parseToken(token);
      checkHeader(parsed.header);
      const workload = checkSubject(parsed.claims['sub'], trustDomain);
      checkAudience(parsed.claims, audiences);
      const expiresAt = checkTimes(parsed.claims, { now, skew, maxLifetime });
      await verifySignature(token, parsed, bundle, now);
      return { workload, tenant, kind: 'jwt-svid', issuer: trustDomain, expiresAt };
    },
    generation: () => bundle.generation(),
    fresh: (now) => bundle.fresh(now),
    status: (now) => bundle.status(now),
    close: () => bundle.close(),
  };
}

/** §2: no other members at all, which takes care of jku, jwk, x5u, x5c, crit and whatever comes next. */
function checkHeader(header: Readonly<Record<string, unknown>>): void {
  const { alg, typ } = header;
  if (!algorithms.has(alg as string)) {
    throw invalid(
      'The attestation is signed with an algorithm that a JWT-SVID may not use. Use RS, PS or ES 256 to 512.',
    );
  }
  if (!Object.keys(header).every((member) => headerMembers.has(member))) {
    throw invalid("The attestation's header has members besides alg, kid and typ, which a JWT-SVID may not have.");
  }
  if (typ !== undefined && typ !== 'JWT' && typ !== 'JOSE') {
    throw invalid("The attestation's `typ` is neither JWT nor JOSE. Send a JWT-SVID.");
  }
}

/** §3.1. The bundle says nothing about its trust domain's name, so that a subject elsewhere must be refused here. */
function checkSubject(sub: unknown, trustDomain: string): string {
  const id = typeof sub === 'string' ? parseSpiffeId(sub) : undefined;
  if (id === undefined) throw invalid("The attestation's `sub` is not a workload's SPIFFE ID. Send a JWT-SVID.");
  if (id.trustDomain !== trustDomain) {
    throw new BrokerError('ISSUER_UNKNOWN', `The attestation is of another trust domain than ${trustDomain}.`);
  }
  return sub as string;
}
