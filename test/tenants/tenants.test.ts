import { timestampMs } from '@bufbuild/protobuf/wkt';
import { createLocalJWKSet, decodeJwt, jwtVerify, type JSONWebKeySet } from 'jose';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { AdminService } from '../../src/gen/leasehold/v1/admin_service_pb.js';
import { AuditService } from '../../src/gen/leasehold/v1/audit_service_pb.js';
import { CredentialService } from '../../src/gen/leasehold/v1/credential_service_pb.js';
import { PolicyService } from '../../src/gen/leasehold/v1/policy_service_pb.js';
import { RevocationService } from '../../src/gen/leasehold/v1/revocation_service_pb.js';
import { TaskService } from '../../src/gen/leasehold/v1/task_service_pb.js';
import { clientWith, held, refusal, reportsRead, sql, tokenOf, warehouseRead } from '../e2e/support.ts';
import type { Parties } from '../e2e/support.ts';
import type { TestEstate } from '../support/broker.ts';
import { domain, serveTwoTenants, type TwoTenants } from './support.ts';

let two: TwoTenants;
let estate: TestEstate;
let ours: Parties;
beforeAll(async () => {
  two = await serveTwoTenants('tenants');
  ({ estate, ours } = two);
});
afterAll(() => two?.stop());

const theirs = async () => ({
  tasks: await two.acme(TaskService, 'orchestrator'),
  agent: await two.acme(CredentialService, 'agent/analyst'),
  admin: await two.acme(AdminService, 'operator'),
  policy: await two.acme(PolicyService, 'operator'),
  audit: await two.acme(AuditService, 'auditor'),
});

const opened = async (tasks: Parties['tasks'], tools = [reportsRead]) =>
  (await tasks.openTask({ intent: 'a tenant at work', agent: 'analyst', tools })).task!;

describe('two tenants on one broker', () => {
  test('issue tokens by issuers and keys of their own, of which neither opens the other’s tools', async () => {
    const other = await theirs();
    const [a, b] = [await opened(ours.tasks), await opened(other.tasks)];
    const token = tokenOf(held(await ours.agent.issueCredential({ taskId: a.taskId, ...reportsRead })));
    const foreign = tokenOf(held(await other.agent.issueCredential({ taskId: b.taskId, ...reportsRead })));
    expect(decodeJwt(token).iss).toBe(estate.httpUrl);
    expect(decodeJwt(foreign).iss).toBe(`${estate.httpUrl}/tenants/acme`);

    const keysOf = async (issuer: string) => {
      const answer = await fetch(`${issuer}/.well-known/jwks.json`);
      return createLocalJWKSet((await answer.json()) as JSONWebKeySet);
    };
    const [keys, foreignKeys] = [await keysOf(estate.httpUrl), await keysOf(`${estate.httpUrl}/tenants/acme`)];
    await expect(jwtVerify(token, keys)).resolves.toBeDefined();
    await expect(jwtVerify(foreign, foreignKeys)).resolves.toBeDefined();
    await expect(jwtVerify(foreign, keys)).rejects.toThrow();
    await expect(jwtVerify(token, foreignKeys)).rejects.toThrow();
  });

  test('see nothing of each other: not a task, a lease, an event, a count, a revision or a component', async () => {
    const other = await theirs();
    const task = await opened(ours.tasks);
    const { lease } = held(await ours.agent.issueCredential({ taskId: task.taskId, ...reportsRead }));
    const { taskId } = task;

    const refusals = [
      other.tasks.getTask({ taskId }),
      other.tasks.closeTask({ taskId }),
      other.tasks.extendTask({ taskId, deadline: task.deadline! }),
      other.audit.listAuditEvents({ taskId }),
      other.agent.issueCredential({ taskId, ...reportsRead }),
    ].map(async (call: Promise<unknown>) => (await refusal(call)).reason);
    expect(new Set(await Promise.all(refusals))).toEqual(new Set(['TASK_NOT_FOUND']));
    expect((await refusal(other.agent.renewCredential({ leaseId: lease.leaseId }))).reason).toBe('LEASE_NOT_FOUND');
    expect((await refusal(other.agent.returnCredential({ leaseId: lease.leaseId }))).reason).toBe('LEASE_NOT_FOUND');

    const mine = new Set((await ours.tasks.listTasks({ pageSize: 1_000 })).tasks.map((one) => one.taskId));
    const foreign = (await other.tasks.listTasks({ pageSize: 1_000 })).tasks.map((one) => one.taskId);
    expect(mine.has(taskId)).toBe(true);
    expect(foreign.filter((id) => mine.has(id))).toEqual([]);
    expect((await other.admin.listLeases({ pageSize: 1_000 })).leases.map((one) => one.leaseId)).not.toContain(
      lease.leaseId,
    );

    const [status, foreignStatus] = [await ours.admin.getStatus({}), await other.admin.getStatus({})];
    const [counted] = await sql(
      estate.databaseUrl,
      `SELECT count(*) FILTER (WHERE tenant = 'acme')::int AS acme, count(*)::int AS both FROM leasehold.leases WHERE state <> 'settled'`,
    );
    expect(Number(foreignStatus.openLeases)).toBe(counted!['acme']);
    expect(Number(status.openLeases)).toBe((counted!['both'] as number) - (counted!['acme'] as number));
    expect(status.policyRevision).not.toBe(foreignStatus.policyRevision);
    const names = foreignStatus.components.map(({ name }) => name);
    expect(names).toContain(`trust-domain/${domain}`);
    expect(names.join(' ')).not.toMatch(/warehouse|dev\.leasehold/);

    const revisions = await other.policy.listRevisions({});
    expect(revisions.revisions.map(({ digest }) => digest)).toEqual([foreignStatus.policyRevision]);
    expect((await refusal(other.policy.getRevision({ digest: status.policyRevision }))).reason).toBe(
      'REVISION_NOT_FOUND',
    );
    expect((await other.admin.listTools({})).tools.map(({ name }) => name)).toEqual(['reports']);
  });

  test('have roles among their own only, also where the pattern of one names a workload of the other', async () => {
    const stranger = clientWith(TaskService, estate.httpPort, await two.acmeToken('agent/analyst'));
    const call = stranger.openTask({ intent: 'x', agent: 'analyst', tools: [reportsRead] });
    expect(['ROLE_REQUIRED', 'FIELD_INVALID']).toContain((await refusal(call)).reason);
    const operator = clientWith(AdminService, estate.httpPort, await two.acmeToken('tool/reports'));
    expect((await refusal(operator.getStatus({}))).reason).toBe('ROLE_REQUIRED');
  });

  test('reach their own targets only: a tool of one cannot be given the database of the other', async () => {
    const other = await theirs();
    expect((await refusal(opened(other.tasks, [warehouseRead]))).reason).toBe('NAME_UNKNOWN');
    const task = await opened(ours.tasks, [warehouseRead]);
    await expect(ours.agent.issueCredential({ taskId: task.taskId, ...warehouseRead })).resolves.toBeDefined();
  });

  test('are given no number from which the other’s could be read', async () => {
    const other = await theirs();
    const [mine, foreign] = [await opened(ours.tasks), await opened(other.tasks)];
    await other.agent.issueCredential({ taskId: foreign.taskId, ...reportsRead });
    await ours.tasks.closeTask({ taskId: mine.taskId, wait: true });
    await other.tasks.closeTask({ taskId: foreign.taskId, wait: true });

    const page = await other.audit.listAuditEvents({ taskId: foreign.taskId, pageSize: 1 });
    expect(page.events[0]!.eventId).toMatch(/^evt_[0-9a-f]{32}$/);
    expect(Buffer.from(page.nextPageToken, 'base64url').toString()).toBe(page.events[0]!.eventId);
    const rest = await other.audit.listAuditEvents({ taskId: foreign.taskId, pageToken: page.nextPageToken });
    const all = await other.audit.listAuditEvents({ taskId: foreign.taskId });
    expect([...page.events, ...rest.events]).toEqual(all.events);
    expect(all.events.map(({ kind }) => kind)).toEqual(
      expect.arrayContaining(['task.opened', 'lease.issued', 'task.settled']) as string[],
    );
    // What one was given says nothing to the other, and a number is no page token.
    for (const pageToken of [page.nextPageToken, Buffer.from('1').toString('base64url')]) {
      const refused = await refusal(ours.audit.listAuditEvents({ taskId: mine.taskId, pageToken }));
      expect(refused.reason).toBe('FIELD_INVALID');
    }
    let evidence = '';
    for await (const { part } of other.audit.exportEvidence({ taskId: foreign.taskId })) {
      if (part.case === 'lines') evidence += part.value;
    }
    for (const { eventId } of all.events) expect(evidence).toContain(`"event_id":"${eventId}"`);
    expect(evidence).not.toMatch(/"event_id" ?: ?[0-9]/);

    const activations = (await other.policy.listActivations({})).activations.map((one) => Number(one.activationId));
    expect(activations).toEqual(activations.map((_, index) => activations.length - index));

    const feed = await two.acme(RevocationService, 'resource_server');
    for await (const { revocations, current } of feed.watchRevocations({})) {
      for (const { position, revokeTime } of revocations) {
        expect(position).toBe(BigInt(timestampMs(revokeTime!)) * 1_000_000n);
      }
      if (current) break;
    }
  });

  test('follow feeds of their own, and their status lists count from their own beginning', async () => {
    const other = await theirs();
    const [a, b] = [await opened(ours.tasks), await opened(other.tasks)];
    const mine = decodeJwt(tokenOf(held(await ours.agent.issueCredential({ taskId: a.taskId, ...reportsRead }))));
    const foreign = decodeJwt(tokenOf(held(await other.agent.issueCredential({ taskId: b.taskId, ...reportsRead }))));
    const list = (claims: object) =>
      (claims as { status: { status_list: { uri: string; idx: number } } }).status.status_list;
    expect(list(foreign).uri.startsWith(`${estate.httpUrl}/tenants/acme/status-lists/`)).toBe(true);
    // Those of this tenant alone were opened before it, whatever the other one opened.
    const [count] = await sql(
      estate.databaseUrl,
      `SELECT count(*)::int AS n FROM leasehold.tasks WHERE tenant = 'acme'`,
    );
    expect(list(foreign).idx).toBeLessThan(count!['n'] as number);
    expect(list(mine).idx).toBeLessThan(1_000);

    const feed = clientWith(RevocationService, estate.httpPort, await two.acmeToken('resource_server'));
    const seen: string[] = [];
    const reading = new AbortController();
    const read = (async () => {
      for await (const message of feed.watchRevocations({}, { signal: reading.signal })) {
        for (const { subject } of message.revocations) seen.push(subject.value!);
      }
    })().catch(() => undefined);
    await ours.tasks.closeTask({ taskId: a.taskId, wait: true });
    await other.tasks.closeTask({ taskId: b.taskId, wait: true });
    await expect.poll(() => seen, { timeout: 10_000 }).toContain(b.taskId);
    reading.abort();
    await read;
    expect(seen).not.toContain(a.taskId);
  });
});
