import { randomUUID } from 'node:crypto';
import { inflateSync } from 'node:zlib';
import { createRemoteJWKSet, decodeJwt, decodeProtectedHeader, jwtVerify } from 'jose';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { LeaseOutcome, LeaseState, RevocationKind } from '../../src/gen/leasehold/v1/common_pb.js';
import { createVerifier, followRevocations } from '../../src/verifier/index.ts';
import type { RevocationFollower, Verifier } from '../../src/verifier/index.ts';
import type { Held, Served } from './support.ts';
import {
  analystId,
  held,
  ledgerRead,
  ms,
  openTask,
  refusal,
  reportsRead,
  serve,
  sql,
  tickerRead,
  tokenOf,
} from './support.ts';

let served: Served;
let follower: RevocationFollower;
/** The reports tool: its own attestation, the feed, and the broker's published keys. */
let reportsTool: Verifier;
const reports = 'https://reports.dev.leasehold.test';

beforeAll(async () => {
  served = await serve('jwt');
  const { httpUrl, mint } = served.estate;
  follower = followRevocations({ baseUrl: httpUrl, token: () => mint('tool/reports') });
  reportsTool = createVerifier({
    issuer: httpUrl,
    audience: reports,
    jwks: `${httpUrl}/.well-known/jwks.json`,
    feed: follower,
  });
  await follower.ready();
});
afterAll(async () => {
  await follower.close();
  await served.stop();
});

const issue = async (taskId: string, access = reportsRead): Promise<Held> =>
  held(await served.agent.issueCredential({ requestId: randomUUID(), taskId, ...access }));
/** `undefined` while the tool accepts it. */
const refusedBy = async (verifier: Verifier, token: string) =>
  await verifier.verify(token).then(
    () => undefined,
    (error: unknown) => (error as { code: string }).code,
  );
const leaseRow = async (leaseId: string) =>
  (await sql(served.estate.databaseUrl, 'SELECT * FROM leasehold.leases WHERE lease_id = $1', [leaseId]))[0]!;

describe('an access token', () => {
  test('verifies with jose by the published keys alone, and says what design §8 says', async () => {
    const { task, taskId } = await openTask(served, [reportsRead]);
    const one = await issue(taskId);
    const token = tokenOf(one);
    const keys = createRemoteJWKSet(new URL(`${served.estate.httpUrl}/.well-known/jwks.json`));
    const { payload, protectedHeader } = await jwtVerify(token, keys, {
      issuer: served.estate.httpUrl,
      audience: reports,
      typ: 'at+jwt',
      algorithms: ['ES256'],
    });
    const issued = Math.floor(ms(one.lease.issueTime) / 1_000);
    expect(Object.keys(protectedHeader).sort()).toEqual(['alg', 'kid', 'typ']);
    expect(payload).toEqual({
      iss: served.estate.httpUrl,
      sub: analystId,
      aud: reports,
      exp: Math.floor(ms(one.lease.expireTime) / 1_000),
      iat: issued,
      nbf: issued,
      jti: one.lease.leaseId,
      client_id: 'analyst',
      scope: 'reports:read',
      authorization_details: [
        { type: 'leasehold_tool', tool: 'reports', tier: 'read', actions: ['reports.list', 'reports.read'] },
      ],
      task_id: taskId,
      root_task_id: task.rootTaskId,
      epoch: 1,
      status: { status_list: { idx: expect.any(Number), uri: expect.stringMatching(/\/status-lists\/\d+$/) } },
    });
    expect(token.length).toBeLessThan(2_048);
    expect(one.credential.material).toMatchObject({ value: { tokenType: 'Bearer' } });
    const renewAt = ms(one.credential.renewAfter);
    expect(renewAt).toBeGreaterThan(ms(one.lease.issueTime));
    expect(renewAt).toBeLessThan(ms(one.lease.expireTime));
  });

  test('is for its own tool only', async () => {
    const { taskId } = await openTask(served, [reportsRead, tickerRead]);
    expect(await refusedBy(reportsTool, tokenOf(await issue(taskId)))).toBeUndefined();
    expect(await refusedBy(reportsTool, tokenOf(await issue(taskId, tickerRead)))).toBe('audience');
  });

  test('never outlives its task', async () => {
    const { task, taskId } = await openTask(served, [reportsRead], { ttl: { seconds: 65n } });
    const { exp } = decodeJwt(tokenOf(await issue(taskId)));
    expect(exp! * 1_000).toBeLessThanOrEqual(ms(task.deadline));
  });

  test('is refused when the task ends too soon for it to be of use', async () => {
    const { taskId } = await openTask(served, [ledgerRead], { ttl: { seconds: 3_600n } });
    // An hour long, with seconds left: as if the hour had passed.
    await sql(
      served.estate.databaseUrl,
      `UPDATE leasehold.tasks SET opened_at = opened_at - interval '1 hour',
      deadline = clock_timestamp() + interval '5 s' WHERE task_id = $1`,
      [taskId],
    );
    expect(await refusal(served.agent.issueCredential({ taskId, ...ledgerRead }))).toMatchObject({
      code: 'FailedPrecondition',
      reason: 'DEADLINE_TOO_CLOSE',
    });
  });
});

describe('a revoked token', () => {
  test('is refused within moments of the close by a tool that follows the feed', async () => {
    const { taskId } = await openTask(served, [reportsRead]);
    const tokens = [tokenOf(await issue(taskId)), tokenOf(await issue(taskId))];
    for (const token of tokens) expect(await refusedBy(reportsTool, token)).toBeUndefined();
    const closed = await served.tasks.closeTask({ taskId, wait: true });
    expect(closed.summary).toMatchObject({ unsettled: 0, revoked: 2 });
    for (const token of tokens) {
      await expect.poll(() => refusedBy(reportsTool, token), { timeout: 5_000, interval: 20 }).toBe('revoked');
    }
    // Others' tokens are no worse for it.
    const other = await openTask(served, [reportsRead]);
    expect(await refusedBy(reportsTool, tokenOf(await issue(other.taskId)))).toBeUndefined();
  });

  test('is refused by a tool that only begins to follow now', async () => {
    const { taskId } = await openTask(served, [reportsRead]);
    const token = tokenOf(await issue(taskId));
    await served.tasks.closeTask({ taskId });
    const { httpUrl, mint } = served.estate;
    const late = followRevocations({ baseUrl: httpUrl, token: () => mint('tool/late') });
    try {
      await late.ready();
      const tool = createVerifier({
        issuer: httpUrl,
        audience: reports,
        jwks: `${httpUrl}/.well-known/jwks.json`,
        feed: late,
      });
      expect(await refusedBy(tool, token)).toBe('revoked');
    } finally {
      await late.close();
    }
  });

  test('and every other is refused once the feed was cut off for longer than the bound', async () => {
    const { taskId } = await openTask(served, [reportsRead]);
    const token = tokenOf(await issue(taskId));
    const { httpUrl, mint } = served.estate;
    const cut = followRevocations({ baseUrl: httpUrl, token: () => mint('tool/cut') });
    await cut.ready();
    let now = Date.now();
    const tool = createVerifier({
      issuer: httpUrl,
      audience: reports,
      jwks: `${httpUrl}/.well-known/jwks.json`,
      feed: cut,
      stalenessBound: 15_000,
      clock: { now: () => now },
    });
    expect(await refusedBy(tool, token)).toBeUndefined();
    await cut.close();
    now += 16_000;
    expect(await refusedBy(tool, token)).toBe('feed_stale');
  });

  test('has its bit in the status list that it names, and a live one has not', async () => {
    const [closing, staying] = [await openTask(served, [reportsRead]), await openTask(served, [reportsRead])];
    const revoked = tokenOf(await issue(closing.taskId));
    const live = tokenOf(await issue(staying.taskId));
    expect(await statusBit(revoked)).toBe(0);
    await served.tasks.closeTask({ taskId: closing.taskId });
    expect(await statusBit(revoked)).toBe(1);
    expect(await statusBit(live)).toBe(0);
  });

  /** As a verifier of draft-ietf-oauth-status-list §8.3 reads it, from the token and the published keys alone. */
  async function statusBit(token: string): Promise<number> {
    const { status } = decodeJwt<{ status: { status_list: { idx: number; uri: string } } }>(token);
    const { idx, uri } = status.status_list;
    const response = await fetch(uri);
    expect(response.headers.get('content-type')).toBe('application/statuslist+jwt');
    const keys = createRemoteJWKSet(new URL(`${served.estate.httpUrl}/.well-known/jwks.json`));
    const { payload } = await jwtVerify<{ status_list: { bits: number; lst: string } }>(await response.text(), keys, {
      typ: 'statuslist+jwt',
      subject: uri,
      algorithms: ['ES256'],
    });
    expect(payload.status_list.bits).toBe(1);
    const bytes = inflateSync(Buffer.from(payload.status_list.lst, 'base64url'));
    return (bytes[idx >> 3]! >> (idx & 7)) & 1;
  }

  test('that was given back is refused although its task goes on', async () => {
    const { taskId } = await openTask(served, [reportsRead]);
    const [returned, kept] = [await issue(taskId), await issue(taskId)];
    const { lease } = await served.agent.returnCredential({ leaseId: returned.lease.leaseId });
    expect(lease).toMatchObject({ state: LeaseState.SETTLED, outcome: LeaseOutcome.RETURNED });
    await expect
      .poll(() => refusedBy(reportsTool, tokenOf(returned)), { timeout: 5_000, interval: 20 })
      .toBe('revoked');
    expect(await refusedBy(reportsTool, tokenOf(kept))).toBeUndefined();
    const again = await served.agent.returnCredential({ leaseId: returned.lease.leaseId });
    expect(again.lease).toEqual(lease);
    expect(await refusal(served.agent.renewCredential({ leaseId: returned.lease.leaseId }))).toMatchObject({
      code: 'FailedPrecondition',
      reason: 'LEASE_ENDED',
    });
  });

  test('of a tier that can only bound it is reported as bounded, with the time of its death', async () => {
    const { taskId } = await openTask(served, [ledgerRead]);
    const { lease } = await issue(taskId, ledgerRead);
    expect(lease.revocationKind).toBe(RevocationKind.BOUNDED);
    const closed = await served.tasks.closeTask({ taskId, wait: true });
    expect(closed.leases).toMatchObject([{ state: LeaseState.SETTLED, outcome: LeaseOutcome.BOUNDED }]);
    expect(ms(closed.leases[0]!.deadBy)).toBe(ms(lease.expireTime));
    expect(closed.summary).toMatchObject({ bounded: 1, revoked: 0 });
  });
});

describe('renewal', () => {
  test('gives the next token under a lease of its own, and the old one ends after the overlap', async () => {
    const { taskId } = await openTask(served, [reportsRead]);
    const first = await issue(taskId);
    const second = held(await served.agent.renewCredential({ leaseId: first.lease.leaseId }));
    expect(second.lease.renewedFromLeaseId).toBe(first.lease.leaseId);
    expect(decodeJwt(tokenOf(second)).jti).toBe(second.lease.leaseId);
    expect(second.lease.leaseId).not.toBe(first.lease.leaseId);
    expect(await refusedBy(reportsTool, tokenOf(second))).toBeUndefined();

    await expect.poll(() => refusedBy(reportsTool, tokenOf(first)), { timeout: 10_000 }).toBe('revoked');
    const row = await leaseRow(first.lease.leaseId);
    expect(row).toMatchObject({ state: 'settled', outcome: 'revoked', settle_cause: 'superseded' });
    // Not before the overlap that was promised (one second here).
    expect((row.settled_at as Date).getTime()).toBeGreaterThanOrEqual(ms(second.lease.issueTime) + 1_000);
    expect(await refusedBy(reportsTool, tokenOf(second))).toBeUndefined();
    expect(await refusal(served.agent.renewCredential({ leaseId: first.lease.leaseId }))).toMatchObject({
      reason: 'LEASE_ENDED',
    });
  });

  test('sent again with the same request_id gives the same lease, also once the old one has gone', async () => {
    const { taskId } = await openTask(served, [reportsRead]);
    const first = await issue(taskId);
    const request = { requestId: randomUUID(), leaseId: first.lease.leaseId };
    const answers = await Promise.all([1, 2, 3].map(() => served.agent.renewCredential(request)));
    await expect.poll(async () => (await leaseRow(first.lease.leaseId)).state, { timeout: 10_000 }).toBe('settled');
    answers.push(await served.agent.renewCredential(request));
    expect(new Set(answers.map((answer) => tokenOf(held(answer)).split('.')[1])).size).toBe(1);
    const rows = await sql(served.estate.databaseUrl, 'SELECT FROM leasehold.leases WHERE task_id = $1', [taskId]);
    expect(rows).toHaveLength(2);
  });

  test('by two at once with ids of their own makes one successor', async () => {
    const { taskId } = await openTask(served, [reportsRead]);
    const { lease } = await issue(taskId);
    const outcomes = await Promise.all(
      [1, 2, 3, 4].map(() =>
        served.agent.renewCredential({ requestId: randomUUID(), leaseId: lease.leaseId }).then(
          () => 'renewed',
          async (error: unknown) => (await refusal(Promise.reject(error as Error))).reason,
        ),
      ),
    );
    expect(outcomes.sort()).toEqual(['LEASE_ENDED', 'LEASE_ENDED', 'LEASE_ENDED', 'renewed']);
    const rows = await sql(served.estate.databaseUrl, 'SELECT FROM leasehold.leases WHERE renewed_from = $1', [
      lease.leaseId,
    ]);
    expect(rows).toHaveLength(1);
  });

  test('never passes the deadline', async () => {
    const { task, taskId } = await openTask(served, [tickerRead], { ttl: { seconds: 5n } });
    let current = await issue(taskId, tickerRead);
    for (;;) {
      expect(ms(current.lease.expireTime)).toBeLessThanOrEqual(ms(task.deadline));
      if (ms(task.deadline) - Date.now() < 2_000) break;
      current = held(await served.agent.renewCredential({ leaseId: current.lease.leaseId }));
      await new Promise((resolve) => setTimeout(resolve, 500));
    }
  });

  test('of a token that ran out by itself is refused, and its lease is called expired', async () => {
    const { taskId } = await openTask(served, [tickerRead]);
    const { lease } = await issue(taskId, tickerRead);
    await expect.poll(async () => (await leaseRow(lease.leaseId)).outcome, { timeout: 10_000 }).toBe('expired');
    expect(await refusal(served.agent.renewCredential({ leaseId: lease.leaseId }))).toMatchObject({
      reason: 'LEASE_ENDED',
    });
  });
});

test('a rotation of the signing key while tokens are out leaves every one of them verifiable', async () => {
  const { taskId } = await openTask(served, [reportsRead]);
  const before = tokenOf(await issue(taskId));
  const { kid } = decodeProtectedHeader(before);
  // Time cannot be made to pass for a real broker: the key is made older instead.
  const keys = 'leasehold.signing_keys';
  await sql(
    served.estate.databaseUrl,
    `UPDATE ${keys} SET activates_at = activates_at - interval '31 days',
    retires_at = clock_timestamp() - interval '1 s' WHERE state = 'active'`,
  );
  const published = async () => {
    const { keys } = (await (await fetch(`${served.estate.httpUrl}/.well-known/jwks.json`)).json()) as {
      keys: { kid: string }[];
    };
    return keys.map((key) => key.kid);
  };
  // The successor is published before it signs: verifiers meet it in time.
  await expect.poll(published, { timeout: 10_000 }).toHaveLength(2);
  expect(decodeProtectedHeader(tokenOf(await issue(taskId))).kid).toBe(kid);
  await sql(served.estate.databaseUrl, `UPDATE ${keys} SET activates_at = clock_timestamp() WHERE state = 'published'`);
  await expect
    .poll(async () => decodeProtectedHeader(tokenOf(await issue(taskId))).kid, { timeout: 10_000 })
    .not.toBe(kid);
  const after = tokenOf(await issue(taskId));
  expect(await published()).toEqual(expect.arrayContaining([kid, decodeProtectedHeader(after).kid]));
  const fresh = createVerifier({
    issuer: served.estate.httpUrl,
    audience: reports,
    jwks: `${served.estate.httpUrl}/.well-known/jwks.json`,
    feed: follower,
  });
  for (const token of [before, after]) expect(await refusedBy(fresh, token)).toBeUndefined();
  // One that fetched the keys before the rotation gets along as well.
  await expect.poll(() => refusedBy(reportsTool, after), { timeout: 10_000 }).toBeUndefined();
  const [retired] = await sql(served.estate.databaseUrl, `SELECT state, sealed_private FROM ${keys} WHERE kid = $1`, [
    kid,
  ]);
  expect(retired).toEqual({ state: 'retired', sealed_private: null });
});
