import { randomUUID } from 'node:crypto';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { LeaseOutcome, LeaseState, TaskState } from '../../src/gen/leasehold/v1/common_pb.js';
import type { Held, Served } from './support.ts';
import {
  held,
  logIn,
  loggedIn,
  loginOf,
  loginRefusal,
  ms,
  openTask,
  refusal,
  roleExists,
  serve,
  sql,
  ticket,
  warehouseRead,
  warehouseWrite,
} from './support.ts';

let served: Served;
beforeAll(async () => {
  served = await serve('pg');
});
afterAll(() => served.stop());

const issue = async (taskId: string, access = warehouseRead): Promise<Held> =>
  held(await served.agent.issueCredential({ requestId: randomUUID(), taskId, ...access }));
const insufficientPrivilege = { code: '42501' };
const names = async () =>
  (await sql(served.estate.targetUrl, 'SELECT customer FROM orders ORDER BY id')).map(({ customer }) => customer);

describe('a login for reading', () => {
  test('reads, and can neither write nor see what its role may not', async () => {
    const { taskId } = await openTask(served, [warehouseRead]);
    await loggedIn(loginOf(await issue(taskId)), async (client) => {
      const { rows } = await client.query('SELECT customer FROM orders ORDER BY id');
      expect(rows.map(({ customer }: { customer: string }) => customer)).toEqual(await names());
      await expect(client.query(`INSERT INTO orders (customer, total) VALUES ('X', 1)`)).rejects.toMatchObject(
        insufficientPrivilege,
      );
      await expect(client.query('DELETE FROM orders')).rejects.toMatchObject(insufficientPrivilege);
      await expect(client.query('CREATE TABLE t (i int)')).rejects.toMatchObject(insufficientPrivilege);
      await expect(client.query('CREATE ROLE other LOGIN')).rejects.toMatchObject(insufficientPrivilege);
      await expect(client.query('SET ROLE warehouse_write')).rejects.toMatchObject(insufficientPrivilege);
      await expect(client.query('SELECT * FROM pg_authid')).rejects.toMatchObject(insufficientPrivilege);
    });
  });

  test('ends at the target itself no later than its lease', async () => {
    const { task, taskId } = await openTask(served, [warehouseRead], { ttl: { seconds: 90n } });
    const one = await issue(taskId);
    const [role] = await sql(
      served.estate.targetUrl,
      'SELECT rolvaliduntil, rolsuper, rolcreaterole, rolcreatedb, rolreplication, rolbypassrls FROM pg_roles WHERE rolname = $1',
      [loginOf(one).username],
    );
    expect(role).toMatchObject({
      rolsuper: false,
      rolcreaterole: false,
      rolcreatedb: false,
      rolreplication: false,
      rolbypassrls: false,
    });
    expect(ms(one.lease.expireTime)).toBeLessThanOrEqual(ms(task.deadline));
    // VALID UNTIL may be rounded up to its next second.
    expect((role!.rolvaliduntil as Date).getTime()).toBeLessThanOrEqual(ms(one.lease.expireTime) + 1_000);
  });

  test('keeps no password at the broker, and the target keeps only its verifier', async () => {
    const { taskId } = await openTask(served, [warehouseRead]);
    const { username, password } = loginOf(await issue(taskId));
    const [stored] = await sql(served.estate.targetUrl, 'SELECT rolpassword FROM pg_authid WHERE rolname = $1', [
      username,
    ]);
    expect(stored!.rolpassword).toMatch(/^SCRAM-SHA-256\$/);
    for (const table of ['tasks', 'leases', 'audit_events']) {
      const found = await sql(
        served.estate.databaseUrl,
        `SELECT FROM leasehold.${table} r WHERE position($1 in r::text) > 0`,
        [password],
      );
      expect(found).toEqual([]);
    }
  });
});

test('a login for writing, given for a change ticket, really writes', async () => {
  const { taskId } = await openTask(served, [warehouseWrite], { context: ticket });
  await loggedIn(loginOf(await issue(taskId, warehouseWrite)), async (client) => {
    await client.query(`INSERT INTO orders (customer, total) VALUES ('Dohle KG', 5)`);
    await client.query(`UPDATE orders SET total = 6 WHERE customer = 'Dohle KG'`);
    await expect(client.query('DROP TABLE orders')).rejects.toMatchObject(insufficientPrivilege);
  });
  expect(await sql(served.estate.targetUrl, `SELECT total FROM orders WHERE customer = 'Dohle KG'`)).toEqual([
    { total: '6.00' },
  ]);
  await sql(served.estate.targetUrl, `DELETE FROM orders WHERE customer = 'Dohle KG'`);
});

test('a renewal that policy does not grant is refused and leaves the present login alone', async () => {
  const { taskId } = await openTask(served, [warehouseWrite], { context: ticket });
  const one = await issue(taskId, warehouseWrite);
  expect(await refusal(served.agent.renewCredential({ leaseId: one.lease.leaseId }))).toMatchObject({
    code: 'FailedPrecondition',
    reason: 'RENEWAL_REFUSED',
    metadata: { lives_until: new Date(ms(one.lease.expireTime)).toISOString() },
  });
  expect(await loginRefusal(loginOf(one))).toBeUndefined();
});

test('what is given back is gone from the target when the answer arrives, open sessions included', async () => {
  const { taskId } = await openTask(served, [warehouseRead]);
  const [returned, kept] = [await issue(taskId), await issue(taskId)];
  const session = await logIn(loginOf(returned));
  const { lease } = await served.agent.returnCredential({ leaseId: returned.lease.leaseId });
  expect(lease).toMatchObject({ state: LeaseState.SETTLED, outcome: LeaseOutcome.RETURNED });
  expect(await roleExists(served.estate, loginOf(returned).username)).toBe(false);
  await expect(session.query('SELECT 1')).rejects.toThrow();
  expect(await loginRefusal(loginOf(returned))).toBe('28P01');
  expect(await loginRefusal(loginOf(kept))).toBeUndefined();
});

test('a renewal gives a second login, and the first goes after the overlap', async () => {
  const { taskId } = await openTask(served, [warehouseRead]);
  const first = await issue(taskId);
  const second = held(await served.agent.renewCredential({ leaseId: first.lease.leaseId }));
  expect(loginOf(second).username).not.toBe(loginOf(first).username);
  expect(second.lease.renewedFromLeaseId).toBe(first.lease.leaseId);
  expect(await loginRefusal(loginOf(second))).toBeUndefined();
  await expect.poll(() => roleExists(served.estate, loginOf(first).username), { timeout: 15_000 }).toBe(false);
  expect(await loginRefusal(loginOf(second))).toBeUndefined();
  const [row] = await sql(served.estate.databaseUrl, 'SELECT * FROM leasehold.leases WHERE lease_id = $1', [
    first.lease.leaseId,
  ]);
  expect(row).toMatchObject({ outcome: 'revoked', settle_cause: 'superseded' });
  expect((row!.settled_at as Date).getTime()).toBeGreaterThanOrEqual(ms(second.lease.issueTime) + 1_000);
});

test('the same request_id twice leaves one login, whose newest secret works', async () => {
  const { taskId } = await openTask(served, [warehouseRead]);
  const request = { requestId: randomUUID(), taskId, ...warehouseRead };
  const first = held(await served.agent.issueCredential(request));
  const second = held(await served.agent.issueCredential(request));
  expect(second.lease.leaseId).toBe(first.lease.leaseId);
  expect(loginOf(second).username).toBe(loginOf(first).username);
  expect(await loginRefusal(loginOf(second))).toBeUndefined();
  const [{ n }] = (await sql(
    served.estate.databaseUrl,
    'SELECT count(*)::int AS n FROM leasehold.leases WHERE task_id = $1',
    [taskId],
  )) as [{ n: number }];
  expect(n).toBe(1);
});

test('a close takes every login of the task to an outcome, and none of another task', async () => {
  const [closing, staying] = [await openTask(served, [warehouseRead]), await openTask(served, [warehouseRead])];
  const gone = await Promise.all(Array.from({ length: 6 }, () => issue(closing.taskId)));
  const stays = await issue(staying.taskId);
  const sessions = await Promise.all(gone.map((one) => logIn(loginOf(one))));
  const closed = await served.tasks.closeTask({ taskId: closing.taskId, wait: true });
  expect(closed.task!.state).toBe(TaskState.CLOSED);
  expect(closed.summary).toMatchObject({ unsettled: 0, revoked: 6 });
  for (const one of gone) {
    expect(await roleExists(served.estate, loginOf(one).username)).toBe(false);
    expect(await loginRefusal(loginOf(one))).toBe('28P01');
  }
  for (const session of sessions) await expect(session.query('SELECT 1')).rejects.toThrow();
  expect(await loginRefusal(loginOf(stays))).toBeUndefined();
  expect(await refusal(issue(closing.taskId))).toMatchObject({ code: 'FailedPrecondition', reason: 'TASK_CLOSED' });
});
