import { createHash } from 'node:crypto';
import { maxSetLength, SetRefused, type SetVerifier } from './attestors/security-events/verifier.ts';
import { fullBucket, takeToken, type TokenBucket } from './domain/token-bucket.ts';
import { BrokerError } from './domain/errors.ts';
import type { PolicySource } from './domain/policy.ts';
import { draftsOf, EventInvalid } from './domain/signals/security-events.ts';
import { maxBatch, type SignalDraft, type Signals } from './domain/signals/signals.ts';
import type { Clock, Millis } from './domain/time.ts';
import type { Emit } from './observability/observability.ts';
import { json, type HttpRequest, type HttpResponse, type HttpRoute } from './server/http-route.ts';

export interface SecurityEventRouteOptions {
  clock: Clock;
  /** Milliseconds that no change of the clock moves. */
  monotonic: () => number;
  verifier: SetVerifier;
  policy: PolicySource;
  signals: Pick<Signals, 'record'>;
  /** By the transmitter's name. */
  limits: ReadonlyMap<string, { keep: Millis; perSecond: number; burst: number }>;
  emit: Emit;
}

/** Requests that are verified or written at once; the next are told to come back. */
const maxInFlight = 64;

/** Where transmitters push their security event tokens (RFC 8935 §2). */
export function securityEventRoute(options: SecurityEventRouteOptions): HttpRoute {
  const { clock, monotonic, verifier, emit } = options;
  const buckets = new Map<string, TokenBucket>();
  let inFlight = 0;

  return {
    method: 'POST',
    path: '/ssf/events',
    handler: async (request) => {
      if (inFlight >= maxInFlight) return tooMany(1);
      inFlight += 1;
      try {
        return await receive(request);
      } catch (error) {
        if (error instanceof SetRefused) return refused(error.code, error.message);
        if (error instanceof EventInvalid) return refused('invalid_request', error.message);
        throw error;
      } finally {
        inFlight -= 1;
      }
    },
  };

  async function receive(request: HttpRequest): Promise<HttpResponse> {
    const type = request.headers['content-type']?.split(';', 1)[0]?.trim().toLowerCase();
    if (type !== 'application/secevent+jwt') {
      throw new SetRefused('invalid_request', 'the content type must be application/secevent+jwt');
    }
    if (Number(request.headers['content-length'] ?? 0) > maxSetLength) throw tooLong();
    const body = await request.body();
    if (body.byteLength > maxSetLength) throw tooLong();
    const token = body.toString('latin1');
    const set = await verifier.verify(token);
    const { keep, perSecond, burst } = options.limits.get(set.transmitter)!;
    const wait = taken(set.transmitter, perSecond, burst);
    if (wait > 0) return tooMany(wait);

    const context = { now: clock.now(), keep, revision: options.policy.current(set.tenant) };
    const drafts = set.events.flatMap((event) => draftsOf(event, context));
    await record(set, createHash('sha256').update(token).digest('base64url'), drafts);
    for (const { type: event, subjects } of set.events) {
      emit('set.received', { transmitter: set.transmitter, event: shortName(event), mapped: subjects.length > 0 });
    }
    // §2.2: accepted, without a body.
    return { status: 202 };
  }

  /** The `jti` is the request: the same token again changes nothing, and is acknowledged again (§2). */
  async function record(
    { tenant, issuer, jti }: { tenant: string; issuer: string; jti: string },
    digest: string,
    drafts: readonly SignalDraft[],
  ): Promise<void> {
    const unique = [...new Map(drafts.map((draft) => [JSON.stringify([draft.subject, draft.kind]), draft])).values()];
    for (let at = 0; at === 0 ? unique.length > 0 : at < unique.length; at += maxBatch) {
      const result = await options.signals.record({
        tenant,
        source: issuer,
        reportedBy: issuer,
        requestId: at === 0 ? jti : `${jti} ${at}`,
        digest,
        drafts: unique.slice(at, at + maxBatch),
      });
      if (result.digest !== digest) throw new SetRefused('invalid_request', 'its `jti` is that of another token');
    }
  }

  /** Seconds to wait; 0 when it may pass. Counted once it is known who sent it, so that nobody uses up another's. */
  function taken(transmitter: string, perSecond: number, burst: number): number {
    const at = monotonic();
    const bucket = buckets.get(transmitter) ?? fullBucket({ perSecond, burst }, at);
    buckets.set(transmitter, bucket);
    const empty = takeToken(bucket, { perSecond, burst }, at);
    return empty === undefined ? 0 : Math.max(1, Math.ceil(empty.wait / 1_000));
  }

  /** §2.3: the reason as JSON. */
  function refused(code: string, description: string): HttpResponse {
    emit('set.refused', { err: code });
    return json(400, { err: code, description }, { 'content-language': 'en' });
  }
}

function tooLong(): SetRefused {
  return new SetRefused('invalid_request', `the body is longer than ${maxSetLength} bytes`);
}

function tooMany(seconds: number): HttpResponse {
  const error = new BrokerError('RATE_LIMITED', 'Too many events at once: send them again later.');
  const { code, message, reason } = error;
  return json(429, { code, message, reason }, { 'retry-after': String(seconds) });
}

/** Events are named by their issuers: a label takes only those of the standards. */
function shortName(type: string): string {
  const standard = /^https:\/\/schemas\.openid\.net\/secevent\/(caep|risc|ssf)\/event-type\/([a-z-]{1,40})$/.exec(type);
  return standard === null ? 'other' : `${standard[1]}/${standard[2]}`;
}
