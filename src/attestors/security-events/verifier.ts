import { BrokerError } from '../../domain/errors.ts';
import type { SecurityEvent } from '../../domain/signals/security-events.ts';
import type { Clock, Instant, Millis } from '../../domain/time.ts';
import type { KeySource } from '../keys/key-source.ts';
import { edwardsAlgorithms, svidAlgorithms } from '../keys/verification-key.ts';
import { verifySignature } from '../keys/verify-token.ts';
import { parseToken, type ParsedToken } from '../token/parse-token.ts';
import { isObject } from '../token/strict-json.ts';
import { compileSubjects, type SubjectRule } from './subjects.ts';
import { createTransmitterKeys } from './transmitter-keys.ts';

export interface TransmitterOptions {
  name: string;
  tenant: string;
  issuer: string;
  audiences: readonly string[];
  jwksUri?: string | undefined;
  jwksFile?: string | undefined;
  caFile?: string | undefined;
  staleAfter: Millis;
  /** A token that was issued longer ago is refused. */
  maxAge: Millis;
  subjects: readonly SubjectRule[];
}

export interface VerifierOptions {
  transmitters: readonly TransmitterOptions[];
  clock: Clock;
  skew: Millis;
  timeout: Millis;
}

/** What a transmitter is told (RFC 8935 §2.4). */
export type SetErrorCode = 'invalid_request' | 'invalid_key' | 'invalid_issuer' | 'invalid_audience';

export class SetRefused extends Error {
  readonly code: SetErrorCode;
  constructor(code: SetErrorCode, description: string) {
    super(description);
    this.name = 'SetRefused';
    this.code = code;
  }
}

/** A security event token whose transmitter signed it for us. */
export interface VerifiedSet {
  transmitter: string;
  tenant: string;
  issuer: string;
  jti: string;
  events: readonly SecurityEvent[];
}

export interface SetVerifier {
  /** Throws SetRefused, or KEYS_STALE while the transmitter's keys cannot be had. */
  verify(token: string): Promise<VerifiedSet>;
  status(now: Instant): { name: string; ready: boolean; detail: string }[];
  close(): Promise<void>;
}

/** Longer than any event that means something here; the reasons in many languages are what makes one long. */
export const maxSetLength = 32_768;
const maxEvents = 16;
const maxJti = 256;
const algorithms = new Set<string>([...svidAlgorithms, ...edwardsAlgorithms]);
/** Where a token would bring its own key or its own rules (RFC 8725 §3.10). */
const refusedMembers = ['jku', 'jwk', 'x5u', 'x5c', 'crit', 'b64'];

/** Verifies security event tokens (RFC 8417) of the transmitters that the configuration names. */
export function createSetVerifier(options: VerifierOptions): SetVerifier {
  const { clock, skew } = options;
  const transmitters = new Map(
    options.transmitters.map((settings) => [
      settings.issuer,
      {
        settings,
        audiences: new Set(settings.audiences),
        subjectsOf: compileSubjects(settings.subjects),
        keys: createTransmitterKeys({ ...settings, clock, minRefresh: 30_000, timeout: options.timeout }),
      },
    ]),
  );

  return {
    verify: async (token) => {
      const now = clock.now();
      const parsed = parsedSet(token);
      const { claims } = parsed;
      checkHeader(parsed.header);
      const found = typeof claims['iss'] === 'string' ? transmitters.get(claims['iss']) : undefined;
      if (found === undefined) throw new SetRefused('invalid_issuer', 'its issuer is not a configured transmitter');
      const { settings, audiences, keys, subjectsOf } = found;
      checkAudience(claims['aud'], audiences);
      const { jti, issuedAt } = checkClaims(claims, now, skew, settings.maxAge);
      await checkSignature(token, parsed, keys, now);
      const events = eventsIn(claims).map(([type, payload]): SecurityEvent => ({
        type,
        payload,
        issuedAt,
        // SSF 1.0 §3.1: `sub_id` beside the events; `subject` within one is how earlier drafts wrote it.
        subjects: subjectsOf(claims['sub_id'] ?? payload['subject']),
      }));
      return { transmitter: settings.name, tenant: settings.tenant, issuer: settings.issuer, jti, events };
    },

    status: (now) =>
      [...transmitters.values()].map(({ settings, keys }) => ({
        name: `transmitter/${settings.name}`,
        ...keys.status(now),
      })),

    close: async () => {
      await Promise.all([...transmitters.values()].map(({ keys }) => keys.close()));
    },
  };
}

function invalid(description: string): SetRefused {
  return new SetRefused('invalid_request', description);
}

function parsedSet(token: string): ParsedToken {
  try {
    return parseToken(token, maxSetLength);
  } catch (error) {
    if (!(error instanceof BrokerError)) throw error;
    throw invalid('the body is not a signed security event token');
  }
}

/** RFC 8417 §2.3: the type is what keeps a token of another kind from being taken for a SET, and the other way round. */
function checkHeader(header: ParsedToken['header']): void {
  const { alg, typ } = header;
  if (!algorithms.has(alg as string))
    throw new SetRefused('invalid_key', 'it is signed with an algorithm that is not accepted');
  if (typeof typ !== 'string' || !/^(application\/)?secevent\+jwt$/i.test(typ)) {
    throw invalid('its `typ` is not secevent+jwt');
  }
  if (refusedMembers.some((member) => Object.hasOwn(header, member))) {
    throw new SetRefused('invalid_key', 'its header brings a key or rules of its own');
  }
}

function checkAudience(aud: unknown, audiences: ReadonlySet<string>): void {
  const named: unknown[] = Array.isArray(aud) ? aud : [aud];
  if (!named.some((one) => typeof one === 'string' && audiences.has(one))) {
    throw new SetRefused('invalid_audience', 'it is for another audience');
  }
}

/**
 * RFC 8417 §2.2, and SSF 1.0 §4.1: no `exp` and no `sub`, so that a SET is never mistaken for an access token or an ID token
 * (RFC 8417 §4.5, §4.6), nor one of those for a SET.
 */
function checkClaims(claims: ParsedToken['claims'], now: Instant, skew: Millis, maxAge: Millis) {
  const { jti, iat } = claims;
  if (typeof jti !== 'string' || jti === '' || jti.length > maxJti) throw invalid('it has no `jti` that can be used');
  for (const member of ['exp', 'nbf', 'sub', 'nonce', 'at_hash']) {
    if (Object.hasOwn(claims, member)) throw invalid(`it has \`${member}\`, which is for other kinds of tokens`);
  }
  if (typeof iat !== 'number' || !(iat > 0) || iat > Number.MAX_SAFE_INTEGER / 1_000) throw invalid('it has no `iat`');
  const issuedAt = iat * 1_000;
  if (issuedAt > now + skew) throw invalid('its `iat` lies in the future');
  if (issuedAt < now - maxAge - skew) throw invalid('it was issued too long ago');
  return { jti, issuedAt };
}

async function checkSignature(token: string, parsed: ParsedToken, keys: KeySource, now: Instant): Promise<void> {
  try {
    await verifySignature(token, parsed, keys, now);
  } catch (error) {
    if (error instanceof BrokerError && error.reason === 'ATTESTATION_INVALID') {
      throw new SetRefused('invalid_key', 'its signature cannot be verified with a key of its issuer');
    }
    throw error;
  }
}

function eventsIn(claims: ParsedToken['claims']): [type: string, payload: Record<string, unknown>][] {
  const events = isObject(claims['events']) ? Object.entries(claims['events']) : [];
  if (events.length === 0 || events.length > maxEvents) throw invalid(`\`events\` must hold 1 to ${maxEvents} events`);
  return events.map(([type, payload]) => {
    if (!isObject(payload)) throw invalid('an event payload is not an object');
    return [type, payload];
  });
}
