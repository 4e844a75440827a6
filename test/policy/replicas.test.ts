import { rm, writeFile } from 'node:fs/promises';
import path from 'node:path';
import type { Client } from '@connectrpc/connect';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { loadConfig } from '../../src/config/load-config.ts';
import { Tier } from '../../src/gen/leasehold/v1/common_pb.js';
import { CredentialService } from '../../src/gen/leasehold/v1/credential_service_pb.js';
import { TaskService } from '../../src/gen/leasehold/v1/task_service_pb.js';
import { sql } from '../e2e/support.ts';
import { replicaConfig } from '../revisions/support.ts';
import { createEstate, startInProcess } from '../support/broker.ts';
import type { TestEstate } from '../support/broker.ts';

const policy = `
apiVersion: leasehold.dev/v1
kind: Agent
metadata: { name: clerk, owner: o }
spec: { workloads: [spiffe://dev.leasehold.test/agent/clerk] }
---
apiVersion: leasehold.dev/v1
kind: Defaults
metadata: { name: organisation, owner: o }
spec: { ttl: { min: 1m, default: 5m, max: 1h } }
---
apiVersion: leasehold.dev/v1
kind: Tool
metadata: { name: pay, owner: o }
spec: { resource: 'https://pay.test', tiers: { write: { provider: jwt, revocation: immediate } } }
---
apiVersion: leasehold.dev/v1
kind: Tool
metadata: { name: mail, owner: o }
spec: { resource: 'https://mail.test', tiers: { write: { provider: jwt, revocation: immediate } } }
---
apiVersion: leasehold.dev/v1
kind: Tool
metadata: { name: logs, owner: o }
spec:
  resource: https://logs.test
  tiers:
    read: { provider: jwt, revocation: immediate }
    write: { provider: jwt, revocation: immediate }
    execute: { provider: jwt, revocation: immediate }
---
apiVersion: leasehold.dev/v1
kind: Policy
metadata: { name: counted, owner: o }
spec:
  rules:
    - { name: pay, agents: [clerk], tools: [pay], tiers: [write], effect: allow, obligations: { maxUses: 2 } }
    - { name: mail, agents: [clerk], tools: [mail], tiers: [write], effect: allow, when: "rate.agent('1h', 'mail') < 3" }
    - { name: apart, agents: [clerk], tools: [mail], tiers: [write], effect: deny, when: "held.tool('pay')", reason: No mail after a payment. }
    - { name: thrice, agents: [clerk], tools: [logs], tiers: [read], effect: allow, obligations: { renewal: { max: 2 } } }
    - { name: a-shift, agents: [clerk], tools: [logs], tiers: [write], effect: allow, obligations: { renewal: { maxAge: 8h } } }
    - { name: by-line, agents: [clerk], tools: [logs], tiers: [execute], effect: allow, obligations: { renewal: { max: 1, scope: line } } }
`;

let estate: TestEstate;
const stops: (() => Promise<void>)[] = [];
let tasks: Client<typeof TaskService>;
let replicas: Client<typeof CredentialService>[];
const pay = { tool: 'pay', tier: Tier.WRITE };
const mail = { tool: 'mail', tier: Tier.WRITE };

const logs = { tool: 'logs', tier: Tier.READ };
const shift = { tool: 'logs', tier: Tier.WRITE };
const byLine = { tool: 'logs', tier: Tier.EXECUTE };

beforeAll(async () => {
  estate = await createEstate('counted');
  await rm(path.join(estate.policyDir, 'analyst.yaml'), { force: true });
  await writeFile(path.join(estate.policyDir, 'counted.yaml'), policy);
  const first = await startInProcess(estate);
  const other = await replicaConfig(estate);
  const second = await startInProcess(estate, { config: loadConfig({ path: other.configFile, env: process.env }) });
  stops.push(
    () => first.stop(500),
    () => second.stop(500),
  );
  tasks = estate.client(TaskService, 'orchestrator');
  replicas = [estate.httpPort, other.httpPort].map((port) => estate.client(CredentialService, 'agent/clerk', port));
});
afterAll(async () => {
  for (const stop of stops) await stop();
  await estate?.remove();
});

async function open(): Promise<string> {
  const { task } = await tasks.openTask({
    intent: 'test',
    agent: 'clerk',
    tools: [pay, mail, logs, shift, byLine],
    ttl: { seconds: 3_600n },
  });
  return task!.taskId;
}

/** What agents hold, by the database's own word. */
const live = async (tool: string, taskId: string | null) =>
  (
    await sql(
      estate.databaseUrl,
      `SELECT FROM leasehold.leases WHERE tool = $1 AND ($2::text IS NULL OR task_id = $2) AND state = 'active'`,
      [tool, taskId],
    )
  ).length;

test('uses are never more than policy counts, however many ask at two replicas at once, and all of them are had', async () => {
  const taskId = await open();
  await Promise.allSettled(Array.from({ length: 40 }, (_, n) => replicas[n % 2]!.issueCredential({ taskId, ...pay })));
  expect(await live('pay', taskId)).toBeLessThanOrEqual(2);
  // Of two that saw each other neither may have been served: what is left over is there for who asks again.
  for (let n = await live('pay', taskId); n < 2; n++) await replicas[n % 2]!.issueCredential({ taskId, ...pay });
  for (const replica of replicas) {
    await expect(replica.issueCredential({ taskId, ...pay })).rejects.toThrow(/2 times in one task/);
  }
  expect(await live('pay', taskId)).toBe(2);
});

test('a rate over all tasks of an agent holds for both replicas together', async () => {
  const all = await Promise.all(Array.from({ length: 8 }, open));
  await Promise.allSettled(all.map((taskId, n) => replicas[n % 2]!.issueCredential({ taskId, ...mail })));
  expect(await live('mail', null)).toBeLessThanOrEqual(3);
  for (let n = await live('mail', null); n < 3; n++) {
    await replicas[n % 2]!.issueCredential({ taskId: all[n]!, ...mail });
  }
  for (const replica of replicas) {
    await expect(replica.issueCredential({ taskId: await open(), ...mail })).rejects.toThrow(/does not hold/);
  }
  expect(await live('mail', null)).toBe(3);
});

test('what one replica issued keeps the other from what may not go with it', async () => {
  await sql(estate.databaseUrl, `UPDATE leasehold.leases SET issued_at = issued_at - interval '2 hours'`);
  const taskId = await open();
  await replicas[0]!.issueCredential({ taskId, ...pay });
  await expect(replicas[1]!.issueCredential({ taskId, ...mail })).rejects.toThrow(/No mail after a payment/);
});

describe('limits on renewal', () => {
  const count = async (taskId: string) =>
    (
      await sql(
        estate.databaseUrl,
        `SELECT FROM leasehold.leases WHERE task_id = $1 AND settle_cause IS DISTINCT FROM 'abandoned'`,
        [taskId],
      )
    ).length;

  test('are not got around by a line begun anew, nor by many at two replicas at once', async () => {
    const taskId = await open();
    const first = (await replicas[0]!.issueCredential({ taskId, ...logs })).credential!.lease!;
    const second = (await replicas[1]!.renewCredential({ leaseId: first.leaseId })).credential!.lease!;
    await replicas[0]!.issueCredential({ taskId, ...logs });
    await expect(replicas[1]!.issueCredential({ taskId, ...logs })).rejects.toThrow(
      /rule counted\/thrice lets a task have logs:read and renew it 2 times, in all its lines together, which has been used/,
    );
    await expect(replicas[0]!.renewCredential({ leaseId: second.leaseId })).rejects.toThrow(
      /rule counted\/thrice allows renewal at most 2 times in one task, which have been used; the present credential/,
    );
    expect(await count(taskId)).toBe(3);
    // Another task has its own.
    await replicas[0]!.issueCredential({ taskId: await open(), ...logs });

    const raced = await open();
    await Promise.allSettled(
      Array.from({ length: 20 }, (_, n) => replicas[n % 2]!.issueCredential({ taskId: raced, ...logs })),
    );
    expect(await count(raced)).toBeLessThanOrEqual(3);
    expect(await live('logs', raced)).toBe(await count(raced));
  });

  test('on the age of a line hold for the task, whose first credential may be of another line', async () => {
    const taskId = await open();
    const ago = `interval '9 hours'`;
    await sql(estate.databaseUrl, `UPDATE leasehold.tasks SET opened_at = opened_at - ${ago} WHERE task_id = $1`, [
      taskId,
    ]);
    const { lease } = (await replicas[0]!.issueCredential({ taskId, ...shift })).credential!;
    await replicas[0]!.issueCredential({ taskId, ...shift });
    await sql(
      estate.databaseUrl,
      `UPDATE leasehold.leases SET line_started_at = line_started_at - ${ago} WHERE lease_id = $1`,
      [lease!.leaseId],
    );
    for (const replica of replicas) {
      await expect(replica.issueCredential({ taskId, ...shift })).rejects.toThrow(
        /rule counted\/a-shift lets a task have logs:write until 8h after the first issue, which is over/,
      );
    }
  });

  test('may be about one line where policy says so', async () => {
    const taskId = await open();
    for (const replica of replicas) {
      const { lease } = (await replica.issueCredential({ taskId, ...byLine })).credential!;
      const next = (await replica.renewCredential({ leaseId: lease!.leaseId })).credential!.lease!;
      await expect(replica.renewCredential({ leaseId: next.leaseId })).rejects.toThrow(/at most once/);
    }
  });
});
