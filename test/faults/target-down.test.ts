import { appendFile } from 'node:fs/promises';
import path from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { LeaseState, TaskState } from '../../src/gen/leasehold/v1/common_pb.js';
import { AdminService } from '../../src/gen/leasehold/v1/admin_service_pb.js';
import { createEstate, startInProcess, type TestEstate } from '../support/broker.ts';
import { asSuperuser } from '../support/postgres.ts';
import { startProxy, type TestProxy } from '../support/proxy.ts';
import {
  brokerRows,
  callers,
  editConfig,
  editPolicy,
  eventually,
  expectSettled,
  leasesOf,
  logIn,
  loginOf,
  openTask,
  ordersSeenBy,
  refusalOf,
  reportsRead,
  rolesOf,
  warehouseRead,
} from './support.ts';
import { Tier } from '../../src/gen/leasehold/v1/common_pb.js';

/** Fault 8. Between broker and warehouse stands a network that fails; the annex, the same database, is reached directly. */
const annexRead = { tool: 'annex', tier: Tier.READ };
let estate: TestEstate;
let broker: Awaited<ReturnType<typeof startInProcess>>;
let network: TestProxy;
beforeAll(async () => {
  estate = await createEstate('down', { tasks: { settleBound: '2s' } });
  network = await startProxy(estate.target.host, estate.target.port);
  await editConfig(estate, (config) => {
    const warehouse = config['targets']!['warehouse']!;
    config['targets'] = {
      annex: warehouse,
      warehouse: { ...warehouse, port: network.port, connectPort: estate.target.port, issueTimeout: '2s' },
    };
  });
  await editPolicy(estate, 'analyst.yaml', (text) =>
    text.replace('tools: [reports, warehouse]', 'tools: [reports, warehouse, annex]'),
  );
  await appendFile(path.join(estate.policyDir, 'tools.yaml'), annexTool);
  broker = await startInProcess(estate);
});
afterAll(async () => {
  await network?.mode('pass');
  await broker?.stop();
  await network?.close();
  await estate?.remove();
});

const annexTool = `---
apiVersion: leasehold.dev/v1
kind: Tool
metadata: { name: annex, owner: data-platform@leasehold.test, description: The same database by another way. }
spec:
  resource: https://annex.dev.leasehold.test
  tiers:
    read:
      provider: postgres
      revocation: immediate
      ttl: { min: 1m, default: 5m, max: 1h }
      postgres: { target: annex, groupRole: warehouse_read }
`;

const stateOf = async (taskId: string) =>
  (await brokerRows(estate, 'SELECT state FROM tasks WHERE task_id = $1', [taskId]))[0]!['state'];

describe.each(['refuse', 'hang'] as const)('while the target is down (%s)', (mode) => {
  test(
    'its task is close_degraded, an operator sees why, and it settles by itself when the target is back',
    { timeout: 90_000 },
    async () => {
      const { agent, orchestrator } = callers(estate);
      const operator = estate.client(AdminService, 'operator');
      const taskId = await openTask(estate);
      const { credential } = await agent.issueCredential({ taskId, ...warehouseRead });
      const bystander = await orchestrator.openTask({
        intent: 'bystander',
        agent: 'analyst',
        tools: [reportsRead, annexRead],
      });
      const other = bystander.task!.taskId;
      for (const access of [reportsRead, annexRead]) await agent.issueCredential({ taskId: other, ...access });

      await network.mode(mode);
      const closed = await orchestrator.closeTask({ taskId });
      expect(closed.task!.state).toBe(TaskState.CLOSING);
      // The settler has begun on the one that it cannot reach.
      await eventually(async () => expect((await leasesOf(estate, taskId))[0]!['settle_attempts']).toBeGreaterThan(0));

      // Nobody else waits for it.
      const aside = await orchestrator.closeTask({ taskId: other, wait: true }, { timeoutMs: 5_000 });
      expect(aside.task!.state).toBe(TaskState.CLOSED);
      expect(
        await brokerRows(estate, `SELECT FROM audit_events WHERE task_id = $1 AND kind = 'task.degraded'`, [other]),
      ).toEqual([]);
      await expectSettled(estate, other);

      await eventually(async () => expect(await stateOf(taskId)).toBe('close_degraded'));
      await eventually(async () => {
        const { leases } = await operator.listLeases({ troubled: true });
        expect(leases).toMatchObject([{ leaseId: credential!.lease!.leaseId, state: LeaseState.SETTLING }]);
        expect(leases[0]!.settleError).not.toBe('');
      });
      expect((await operator.getStatus({})).troubledLeases).toBe(1n);
      const [lease] = await leasesOf(estate, taskId);
      expect(lease!['settle_error']).not.toContain(estate.target.password);
      // The truth: it is alive, and the broker does not say otherwise.
      expect(lease!['outcome']).toBeNull();
      expect(await ordersSeenBy(loginOf(credential))).toBe(3);

      await network.mode('pass');
      await expectSettled(estate, taskId, 60_000);
      await expect(ordersSeenBy(loginOf(credential))).rejects.toThrow();
      expect((await operator.listLeases({ troubled: true })).leases).toEqual([]);
    },
  );

  test('an issue is refused with UNAVAILABLE and leaves nothing behind', { timeout: 60_000 }, async () => {
    const { agent, orchestrator } = callers(estate);
    const taskId = await openTask(estate);
    const request = { requestId: crypto.randomUUID(), taskId, ...warehouseRead };
    await network.mode(mode);
    const refusal = await refusalOf(agent.issueCredential(request));
    expect(refusal).toMatchObject({ code: 'Unavailable', reason: 'PROVIDER_UNAVAILABLE' });
    expect(refusal.message).not.toContain(estate.target.password);
    await agent.issueCredential({ taskId, ...reportsRead });

    await network.mode('pass');
    const { credential } = await agent.issueCredential(request);
    expect(await ordersSeenBy(loginOf(credential))).toBe(3);
    await orchestrator.closeTask({ taskId });
    const leases = await expectSettled(estate, taskId, 60_000);
    expect(leases.filter((lease) => lease['settle_cause'] === 'abandoned')).toHaveLength(1);
  });
});

/** Fault 9. */
test('sessions that are open at the close are ended: idle, busy, and within a transaction', async () => {
  const { agent, orchestrator } = callers(estate);
  const taskId = await openTask(estate);
  const { credential } = await agent.issueCredential({ taskId, ...warehouseRead });
  const login = loginOf(credential);
  const sessions = await Promise.all([logIn(login), logIn(login), logIn(login)]);
  const ends = Promise.all(sessions.map((session) => new Promise((resolve) => session.once('end', resolve))));
  const [, busy, inTransaction] = sessions;
  const running = busy!.query('SELECT pg_sleep(600)').catch((error: Error) => error);
  await inTransaction!.query('BEGIN; SELECT * FROM orders');

  await orchestrator.closeTask({ taskId, wait: true });
  await ends;
  expect(await running).toMatchObject({ code: '57P01' });
  const left = await asSuperuser(estate.targetUrl, async (client) =>
    client.query('SELECT pid FROM pg_stat_activity WHERE usename = $1', [login.username]),
  );
  expect(left.rows).toEqual([]);
  await expect(logIn(login)).rejects.toThrow();
  expect(await rolesOf(estate, await leasesOf(estate, taskId))).toEqual([]);
});

test('one login that cannot be dropped holds up no other of its target', { timeout: 60_000 }, async () => {
  const { agent, orchestrator } = callers(estate);
  const stuck = await openTask(estate);
  const { credential } = await agent.issueCredential({ taskId: stuck, ...warehouseRead });
  const role = loginOf(credential).username;
  // Privileges in a database that the broker does not reach keep the role from being dropped.
  await asSuperuser(estate.databaseUrl, (client) => client.query(`GRANT SELECT ON leasehold.tasks TO ${role}`));
  await orchestrator.closeTask({ taskId: stuck });
  await eventually(async () => expect((await leasesOf(estate, stuck))[0]!['settle_attempts']).toBeGreaterThan(1));

  const taskId = await openTask(estate);
  await agent.issueCredential({ taskId, ...warehouseRead });
  await orchestrator.closeTask({ taskId });
  await expectSettled(estate, taskId, 10_000);

  // It exists still, but lets nobody in.
  await expect(ordersSeenBy(loginOf(credential))).rejects.toThrow();
  expect(await leasesOf(estate, stuck)).toMatchObject([
    { state: 'settling', outcome: null, settle_error: expect.stringContaining(role) },
  ]);
  await asSuperuser(estate.databaseUrl, (client) => client.query(`REVOKE ALL ON leasehold.tasks FROM ${role}`));
  await expectSettled(estate, stuck, 50_000);
});
