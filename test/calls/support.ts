import { cp } from 'node:fs/promises';
import path from 'node:path';
import { Tier } from '../../src/gen/leasehold/v1/common_pb.js';
import {
  ToolCallOutcome,
  ToolCallService,
  ToolCallViolation,
  type ToolCall,
} from '../../src/gen/leasehold/v1/tool_call_service_pb.js';
import { held, openTask, parties, sql, type Held, type Parties } from '../e2e/support.ts';
import { createEstate, startInProcess, type TestEstate } from '../support/broker.ts';

export const ordersRead = { tool: 'orders', tier: Tier.READ };
export const ordersWrite = { tool: 'orders', tier: Tier.WRITE };
export const mailWrite = { tool: 'mail', tier: Tier.WRITE };
export const succeeded = ToolCallOutcome.SUCCEEDED;

export type Estate = Awaited<ReturnType<typeof serveCalls>>;

/** A whole broker, with those who record calls. */
export async function serveCalls(label: string, overrides: Record<string, object> = {}) {
  const estate = await createEstate(label, { tasks: { renewalOverlap: '1s' }, ...overrides });
  await cp(path.join(import.meta.dirname, 'fixtures', 'calls.yaml'), path.join(estate.policyDir, 'calls.yaml'));
  const broker = await startInProcess(estate);
  return {
    estate,
    log: broker.log,
    ...parties(estate),
    ...recorders(estate),
    stop: async () => {
      await broker.stop(500);
      await estate.remove();
    },
  };
}

function recorders(estate: TestEstate) {
  return {
    calls: estate.client(ToolCallService, 'agent/analyst'),
    ordersTool: estate.client(ToolCallService, 'tool/orders'),
    mailTool: estate.client(ToolCallService, 'tool/mail'),
    auditorCalls: estate.client(ToolCallService, 'auditor'),
  };
}

/** A task of the analyst with one lease of it. */
export async function working(
  served: Parties,
  access: { tool: string; tier: Tier } = ordersRead,
  more: { tool: string; tier: Tier }[] = [],
): Promise<Held & { taskId: string; leaseId: string }> {
  const { taskId } = await openTask(served, [access, ...more]);
  const got = held(await served.agent.issueCredential({ requestId: crypto.randomUUID(), taskId, ...access }));
  return { ...got, taskId, leaseId: got.lease.leaseId };
}

export const violations = (call: ToolCall | undefined) =>
  (call?.violations ?? []).map((violation) => ToolCallViolation[violation].toLowerCase());

/** What the database itself holds. */
export async function rowsOf(estate: TestEstate, taskId: string): Promise<Record<string, unknown>[]> {
  return await sql(estate.databaseUrl, 'SELECT * FROM leasehold.tool_calls WHERE task_id = $1 ORDER BY call_id', [
    taskId,
  ]);
}

export async function eventsOf(estate: TestEstate, taskId: string): Promise<{ kind: string; detail: object }[]> {
  const text = `SELECT kind, actor, lease_id, detail FROM leasehold.audit_events
    WHERE task_id = $1 AND kind LIKE 'call.%' ORDER BY event_id`;
  return (await sql(estate.databaseUrl, text, [taskId])) as { kind: string; detail: object }[];
}
