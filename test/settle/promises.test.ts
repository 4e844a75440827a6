import { randomUUID } from 'node:crypto';
import { timestampFromMs } from '@bufbuild/protobuf/wkt';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { LeaseState, TaskState } from '../../src/gen/leasehold/v1/common_pb.js';
import { createVerifier } from '../../src/verifier/verifier.ts';
import {
  auditOf,
  held,
  ledgerRead,
  loginOf,
  loginRefusal,
  ms,
  openTask,
  refusal,
  reportsRead,
  serve,
  sql,
  tokenOf,
  warehouseRead,
  type Served,
} from '../e2e/support.ts';

let served: Served;
beforeAll(async () => {
  served = await serve('promises');
});
afterAll(async () => {
  await served.stop();
});

const issue = async (taskId: string, access: { tool: string; tier: number }, requestId: string = randomUUID()) =>
  held(await served.agent.issueCredential({ requestId, taskId, ...access }));
const moveTo = async (taskId: string, at: number) =>
  await served.tasks.extendTask({ taskId, deadline: timestampFromMs(at) });

describe('a deadline that comes nearer is a ceiling for every credential of its task', () => {
  test('one that cannot be revoked keeps it from moving before its end, and the refusal names that', async () => {
    const { taskId } = await openTask(served, [ledgerRead]);
    const one = await issue(taskId, ledgerRead);
    const end = ms(one.lease.expireTime);
    const refused = await refusal(moveTo(taskId, end - 20_000));
    expect(refused).toMatchObject({
      code: 'FailedPrecondition',
      reason: 'DEADLINE_TOO_CLOSE',
      metadata: { earliest: new Date(end).toISOString() },
    });
    const { task } = await served.tasks.getTask({ taskId });
    expect(ms(task!.deadline)).toBeGreaterThan(end);
    expect((await auditOf(served, taskId)).filter(({ kind }) => kind === 'task.extended')).toEqual([]);
    expect(ms((await moveTo(taskId, end)).task!.deadline)).toBe(end);
  });

  test('given back makes no difference: the token works all the same', async () => {
    const { taskId } = await openTask(served, [ledgerRead]);
    const one = await issue(taskId, ledgerRead);
    const { lease } = await served.agent.returnCredential({ leaseId: one.lease.leaseId });
    expect(lease).toMatchObject({ state: LeaseState.SETTLED });
    const verifier = createVerifier({
      issuer: served.estate.httpUrl,
      audience: 'https://ledger.dev.leasehold.test',
      jwks: `${served.estate.httpUrl}/.well-known/jwks.json`,
      feed: 'none',
    });
    expect((await verifier.verify(tokenOf(one))).taskId).toBe(taskId);
    expect(await refusal(moveTo(taskId, Date.now() + 10_000))).toMatchObject({ reason: 'DEADLINE_TOO_CLOSE' });
  });

  test('those that can be revoked are no obstacle, and end with it', async () => {
    const { taskId } = await openTask(served, [reportsRead, warehouseRead]);
    const login = await issue(taskId, warehouseRead);
    await issue(taskId, reportsRead);
    await moveTo(taskId, Date.now() + 1_500);
    await expect
      .poll(async () => (await served.tasks.getTask({ taskId })).task!.state, { timeout: 20_000 })
      .toBe(TaskState.CLOSED);
    expect(await loginRefusal(loginOf(login))).toBe('28P01');
  });

  test('a race of issues with the move leaves no credential beyond it', async () => {
    const { taskId } = await openTask(served, [ledgerRead]);
    const soon = Date.now() + 40_000;
    const issues = Array.from({ length: 30 }, () => issue(taskId, ledgerRead).catch(() => undefined));
    const moved = await moveTo(taskId, soon).then(
      () => true,
      () => false,
    );
    await Promise.all(issues);
    const rows = await sql(
      served.estate.databaseUrl,
      'SELECT max(l.expires_at) AS last, max(t.deadline) AS deadline FROM leasehold.leases l JOIN leasehold.tasks t USING (tenant, task_id) WHERE task_id = $1',
      [taskId],
    );
    const { last, deadline } = rows[0] as { last: Date; deadline: Date };
    expect(last.getTime()).toBeLessThanOrEqual(deadline.getTime());
    if (moved) expect(deadline.getTime()).toBe(soon);
  });
});

describe('retries of one issue at the same moment', () => {
  test('each answered login works when it is answered last; the others are told to try again', async () => {
    const { taskId } = await openTask(served, [warehouseRead]);
    const requestId = randomUUID();
    const first = await issue(taskId, warehouseRead, requestId);
    for (let round = 0; round < 5; round += 1) {
      const answered: ReturnType<typeof held>[] = [];
      const refused: (string | undefined)[] = [];
      const retries = Array.from({ length: 8 }, async () => {
        try {
          answered.push(await issue(taskId, warehouseRead, requestId));
        } catch (error) {
          refused.push((await refusal(Promise.reject(error as Error))).reason);
        }
      });
      await Promise.all(retries);
      expect(answered.length).toBeGreaterThan(0);
      expect(new Set(refused)).toEqual(new Set(refused.length === 0 ? [] : ['IN_PROGRESS']));
      const last = answered.at(-1)!;
      expect(last.lease.leaseId).toBe(first.lease.leaseId);
      expect(await loginRefusal(loginOf(last))).toBeUndefined();
    }
  });

  test('a hold that a dead replica left behind runs out, and an ended lease is told as such', async () => {
    const { taskId } = await openTask(served, [warehouseRead]);
    const requestId = randomUUID();
    const { lease } = await issue(taskId, warehouseRead, requestId);
    const hold = async (interval: string) =>
      await sql(
        served.estate.databaseUrl,
        `UPDATE leasehold.leases SET reissuing_until = now() + $2::interval WHERE lease_id = $1`,
        [lease.leaseId, interval],
      );
    await hold('1 minute');
    expect(await refusal(issue(taskId, warehouseRead, requestId))).toMatchObject({
      code: 'Unavailable',
      reason: 'IN_PROGRESS',
    });
    await hold('-1 second');
    const again = await issue(taskId, warehouseRead, requestId);
    expect(await loginRefusal(loginOf(again))).toBeUndefined();
    await served.agent.returnCredential({ leaseId: lease.leaseId });
    expect(await refusal(issue(taskId, warehouseRead, requestId))).toMatchObject({ reason: 'LEASE_ENDED' });
  });
});
