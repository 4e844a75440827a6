import { create } from '@bufbuild/protobuf';
import { timestampFromMs } from '@bufbuild/protobuf/wkt';
import { Code, ConnectError } from '@connectrpc/connect';
import type { HandlerContext } from '@connectrpc/connect';
import { connectNodeAdapter } from '@connectrpc/connect-node';
import { createServer } from 'node:http';
import type { Server } from 'node:http';
import type { AddressInfo } from 'node:net';
import { afterEach, beforeEach, expect, test, vi } from 'vitest';
import {
  RevocationSchema,
  RevocationService,
  WatchRevocationsResponseSchema,
} from '../../src/gen/leasehold/v1/revocation_service_pb.js';
import type { Revocation, WatchRevocationsResponse } from '../../src/gen/leasehold/v1/revocation_service_pb.js';
import { followRevocations } from '../../src/verifier/index.ts';
import type { FollowOptions, RevocationFollower } from '../../src/verifier/index.ts';

/** A real HTTP server that speaks the feed; what it says is written by each test. */
type Script = (after: bigint, context: HandlerContext) => AsyncGenerator<WatchRevocationsResponse>;
let server: Server;
let baseUrl: string;
let script: Script;
let calls: { after: bigint; authorization: string | null }[];
const followers: RevocationFollower[] = [];

beforeEach(async () => {
  calls = [];
  server = createServer(
    connectNodeAdapter({
      routes: (router) =>
        router.service(RevocationService, {
          async *watchRevocations({ afterPosition }, context) {
            calls.push({ after: afterPosition, authorization: context.requestHeader.get('authorization') });
            yield* script(afterPosition, context);
          },
        }),
    }),
  );
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  baseUrl = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
});

afterEach(async () => {
  await Promise.all(followers.splice(0).map((follower) => follower.close()));
  server.closeAllConnections();
  await new Promise((resolve) => server.close(resolve));
});

function follow(change: Partial<FollowOptions> = {}): RevocationFollower {
  const follower = followRevocations({ baseUrl, backoff: { first: 10, longest: 20 }, ...change });
  followers.push(follower);
  return follower;
}

const message = (revocations: Revocation[], current: boolean, at = Date.now()) =>
  create(WatchRevocationsResponseSchema, { revocations, current, asOfTime: timestampFromMs(at) });
const entry = (position: bigint, subject: Revocation['subject'], forgetAt = Date.now() + 600_000) =>
  create(RevocationSchema, { position, subject, forgetTime: timestampFromMs(forgetAt) });
const task = (position: bigint, value: string, forgetAt?: number) =>
  entry(position, { case: 'taskId', value }, forgetAt);
const open = (context: HandlerContext) =>
  new Promise<void>((resolve) => context.signal.addEventListener('abort', () => resolve()));
const about = (taskId: string, leaseId = 'lse_none') => ({ taskId, leaseId });

test('tasks and leases on the feed are revoked, others are not, and the caller shows its attestation', async () => {
  script = async function* (_, context) {
    yield message([task(1n, 'tsk_a')], false);
    yield message([entry(2n, { case: 'leaseId', value: 'lse_b' })], true);
    await open(context);
  };
  const follower = follow({ token: async () => 'attestation' });
  await follower.ready();
  expect(follower.revoked(about('tsk_a'))).toBe(true);
  expect(follower.revoked(about('tsk_x', 'lse_b'))).toBe(true);
  expect(follower.revoked(about('tsk_x', 'lse_x'))).toBe(false);
  // A lease's id in the place of a task's is another subject.
  expect(follower.revoked(about('lse_b', 'tsk_a'))).toBe(false);
  expect(calls).toEqual([{ after: 0n, authorization: 'Bearer attestation' }]);
});

test('until the first full picture the feed has no word', async () => {
  let release: () => void = () => undefined;
  const wait = new Promise<void>((resolve) => (release = resolve));
  script = async function* (_, context) {
    yield message([task(1n, 'tsk_a')], false);
    await wait;
    yield message([], true);
    await open(context);
  };
  const follower = follow();
  await vi.waitFor(() => expect(follower.entries()).toBe(1));
  expect(follower.freshAsOf()).toBeUndefined();
  release();
  await follower.ready();
  expect(Math.abs(follower.freshAsOf()! - Date.now())).toBeLessThan(30_000);
});

test('after a lost connection it comes back at the position where it was, and has forgotten nothing', async () => {
  const lost: unknown[] = [];
  script = async function* (after, context) {
    if (after === 0n) {
      yield message([task(7n, 'tsk_a')], true);
      throw new ConnectError('moved', Code.Unavailable);
    }
    yield message([task(8n, 'tsk_b')], true);
    await open(context);
  };
  const follower = follow({ onDisconnect: (error) => lost.push(error) });
  await vi.waitFor(() => expect(follower.revoked(about('tsk_b'))).toBe(true));
  expect(follower.revoked(about('tsk_a'))).toBe(true);
  expect(calls.map(({ after }) => after)).toEqual([0n, 7n]);
  expect(lost).toHaveLength(1);
});

test('a feed that goes silent is left and asked again', async () => {
  script = async function* (after, context) {
    if (after === 0n) yield message([task(1n, 'tsk_a')], true);
    else yield message([task(2n, 'tsk_b')], true);
    await open(context);
  };
  const follower = follow({ silence: 50 });
  await vi.waitFor(() => expect(follower.revoked(about('tsk_b'))).toBe(true));
  expect(calls.length).toBeGreaterThanOrEqual(2);
});

test('a message that is old by the broker’s own clock does not count as fresh', async () => {
  const old = Date.now() - 3_600_000;
  script = async function* (_, context) {
    yield message([], true, old);
    await open(context);
  };
  const follower = follow();
  await follower.ready();
  expect(follower.freshAsOf()).toBe(old + 60_000);
});

test('entries are forgotten when no token of theirs can be valid any more', async () => {
  let now = Date.now();
  let next: () => void = () => undefined;
  script = async function* (_, context) {
    yield message([task(1n, 'tsk_short', now + 1_000), task(2n, 'tsk_long', now + 600_000)], true, now);
    await new Promise<void>((resolve) => (next = resolve));
    yield message([], true, now);
    await open(context);
  };
  const follower = follow({ clock: { now: () => now } });
  await follower.ready();
  expect(follower.entries()).toBe(2);
  now += 120_000;
  next();
  await vi.waitFor(() => expect(follower.entries()).toBe(1));
  expect(follower.revoked(about('tsk_long'))).toBe(true);
});

test('more entries than it may keep, or of a kind that it does not know: no word at all rather than a wrong one', async () => {
  script = async function* (_, context) {
    yield message([task(1n, 'tsk_a'), task(2n, 'tsk_b'), task(3n, 'tsk_c')], true);
    await open(context);
  };
  const full = follow({ maxEntries: 2 });
  await vi.waitFor(() => expect(full.entries()).toBe(2));
  expect(full.freshAsOf()).toBeUndefined();

  script = async function* (_, context) {
    yield message([entry(1n, { case: undefined })], true);
    await open(context);
  };
  const puzzled = follow();
  await puzzled.ready();
  expect(puzzled.freshAsOf()).toBeUndefined();
});

test('closing ends it at once, also while the caller’s attestation does not come', async () => {
  script = async function* (_, context) {
    await open(context);
  };
  const follower = follow({ token: () => new Promise(() => undefined) });
  await follower.close();
  await expect(follower.ready()).rejects.toThrow(/closed/);
  expect(calls).toEqual([]);
});

test('without a place to connect to it does not begin', () => {
  expect(() => followRevocations({})).toThrow(/baseUrl/);
});
