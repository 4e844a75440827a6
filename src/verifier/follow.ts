import { timestampMs } from '@bufbuild/protobuf/wkt';
import type { Timestamp } from '@bufbuild/protobuf/wkt';
import { createClient } from '@connectrpc/connect';
import type { Transport } from '@connectrpc/connect';
import { setTimeout as sleep } from 'node:timers/promises';
import type { Clock, Instant, Millis } from '../domain/time.ts';
import { RevocationService } from '../gen/leasehold/v1/revocation_service_pb.js';
import type { Revocation, WatchRevocationsResponse } from '../gen/leasehold/v1/revocation_service_pb.js';
import { createRevocationMemory } from './feed.ts';
import type { RevocationEntry, RevocationFeed } from './feed.ts';
import { transportOf } from './transport.ts';

export interface FollowOptions {
  /** The broker's HTTP door; or give a `transport` of your own (client certificates, a proxy). */
  baseUrl?: string;
  transport?: Transport;
  /** This tool's attestation (a JWT-SVID or OIDC token), asked for anew at every connection. */
  token?: () => string | Promise<string>;
  clock?: Clock;
  /** 0 ≤ x < 1, for the spread of reconnections. */
  random?: () => number;
  /** Silence after which the connection is taken for dead; the broker speaks at least every 5 s. */
  silence?: Millis;
  /** First and longest wait between connections. */
  backoff?: { first: Millis; longest: Millis };
  /** Entries kept at most; one more and every token is refused. */
  maxEntries?: number;
  /** Told why a connection ended. The error may quote the broker, never a token. */
  onDisconnect?: (error: unknown) => void;
}

export interface RevocationFollower extends RevocationFeed {
  /** Resolves at the first full picture; rejects when closed before. */
  ready(): Promise<void>;
  entries(): number;
  close(): Promise<void>;
}

/** Clock difference between broker and tool that is allowed when judging how old the feed's word is. */
const skew = 60_000;

/** Follows RevocationService.WatchRevocations for as long as it is not closed. */
export function followRevocations(options: FollowOptions): RevocationFollower {
  const clock = options.clock ?? { now: Date.now };
  const random = options.random ?? Math.random;
  const silence = options.silence ?? 15_000;
  const backoff = options.backoff ?? { first: 250, longest: 10_000 };
  const client = createClient(RevocationService, transportOf(options));
  const memory = createRevocationMemory(options.maxEntries ?? 1_000_000, skew);
  const stop = new AbortController();
  let fresh: Instant | undefined;
  const first = Promise.withResolvers<void>();
  first.promise.catch(() => undefined);

  async function followOnce(): Promise<boolean> {
    const quiet = new AbortController();
    const watchdog = setTimeout(() => quiet.abort(new Error('the revocation feed went silent')), silence);
    watchdog.unref();
    let heard = false;
    try {
      const signal = AbortSignal.any([stop.signal, quiet.signal]);
      const headers = new Headers();
      if (options.token !== undefined) {
        headers.set('authorization', `Bearer ${await Promise.race([options.token(), rejectAt(signal)])}`);
      }
      let complete = false;
      for await (const message of client.watchRevocations({ afterPosition: memory.position() }, { headers, signal })) {
        watchdog.refresh();
        heard = true;
        complete ||= message.current;
        take(message, complete);
      }
      return heard;
    } catch (error) {
      if (!stop.signal.aborted) options.onDisconnect?.(quiet.signal.aborted ? quiet.signal.reason : error);
      return heard;
    } finally {
      clearTimeout(watchdog);
    }
  }

  function take(message: WatchRevocationsResponse, complete: boolean): void {
    const now = clock.now();
    memory.add(message.revocations.flatMap(entryOf), now);
    if (!complete || memory.overflowed()) return;
    // A message that was long under way is as old as what it says, give or take the two clocks' difference.
    const asOf = message.asOfTime === undefined ? now : timestampMs(message.asOfTime) + skew;
    fresh = Math.max(fresh ?? Number.NEGATIVE_INFINITY, Math.min(now, asOf));
    first.resolve();
  }

  async function run(): Promise<void> {
    let wait = backoff.first;
    while (!stop.signal.aborted) {
      const heard = await followOnce();
      if (stop.signal.aborted) break;
      wait = heard ? backoff.first : Math.min(wait * 2, backoff.longest);
      // Anywhere in the interval: tools that lost the same broker must not come back in the same moment.
      await sleep(wait * random(), undefined, { signal: stop.signal, ref: false }).catch(() => undefined);
    }
  }

  const running = run();
  return {
    // What cannot be kept or understood might concern any token: no word of the feed counts then.
    freshAsOf: () => (memory.overflowed() || memory.has(unknownSubject) ? undefined : fresh),
    revoked: ({ taskId, leaseId }) => memory.has(taskSubject(taskId)) || memory.has(leaseSubject(leaseId)),
    ready: () => first.promise,
    entries: () => memory.size(),
    async close() {
      stop.abort(new Error('the follower was closed'));
      first.reject(new Error('the follower was closed'));
      await running;
    },
  };
}

async function rejectAt(signal: AbortSignal): Promise<never> {
  return await new Promise((_, reject) => {
    if (signal.aborted) reject(signal.reason as Error);
    else signal.addEventListener('abort', () => reject(signal.reason as Error), { once: true });
  });
}

const taskSubject = (taskId: string) => `task ${taskId}`;
const leaseSubject = (leaseId: string) => `lease ${leaseId}`;
const unknownSubject = 'unknown';

function entryOf({ position, subject, forgetTime }: Revocation): RevocationEntry[] {
  const forgetAt = optionalMs(forgetTime);
  switch (subject.case) {
    case 'taskId':
      return [{ position, subject: taskSubject(subject.value), forgetAt }];
    case 'leaseId':
      return [{ position, subject: leaseSubject(subject.value), forgetAt }];
    default:
      // A kind of revocation of a later release: it may be about any token.
      return [{ position, subject: unknownSubject, forgetAt }];
  }
}

function optionalMs(time: Timestamp | undefined): Instant | undefined {
  return time === undefined ? undefined : timestampMs(time);
}
