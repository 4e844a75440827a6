import { cp } from 'node:fs/promises';
import path from 'node:path';
import type { Client } from '@connectrpc/connect';
import { ApprovalService, Verdict, type Approval } from '../../src/gen/leasehold/v1/approval_service_pb.js';
import { AdminService } from '../../src/gen/leasehold/v1/admin_service_pb.js';
import { AuditService } from '../../src/gen/leasehold/v1/audit_service_pb.js';
import { Tier } from '../../src/gen/leasehold/v1/common_pb.js';
import { CredentialService } from '../../src/gen/leasehold/v1/credential_service_pb.js';
import { TaskService } from '../../src/gen/leasehold/v1/task_service_pb.js';
import { devWorkload } from '../../src/dev/environment.ts';
import { createEstate, startInProcess, type TestEstate } from '../support/broker.ts';
import { refusal, type Refusal } from '../e2e/support.ts';

export const people = {
  owner: 'approver/olga',
  guard: 'approver/gus',
  captain: 'approver/cap',
  clerk: 'approver/carl',
} as const;

export const look = { tool: 'vault-door', tier: Tier.READ };
export const turn = { tool: 'vault-door', tier: Tier.WRITE };
export const open = { tool: 'vault-door', tier: Tier.EXECUTE };
export const refund = { tool: 'shop', tier: Tier.WRITE };
export const shut = { tool: 'shop', tier: Tier.EXECUTE };

const groups = {
  'door-owners': [devWorkload(people.owner)],
  // The orchestrator and the agent are in it as well: being named does not make a requester an approver.
  security: [people.guard, people.captain, 'orchestrator', 'agent/analyst'].map(devWorkload),
  'shop-owners': [devWorkload(people.clerk)],
};

export interface Served {
  estate: TestEstate;
  log: string[];
  tasks: Client<typeof TaskService>;
  agent: Client<typeof CredentialService>;
  admin: Client<typeof AdminService>;
  audit: Client<typeof AuditService>;
  approvals(workload: string): Client<typeof ApprovalService>;
  stop(): Promise<void>;
}

/** A whole broker with people who approve. */
export async function serve(
  label: string,
  approvals: object = {},
  overrides: Record<string, object> = {},
): Promise<Served> {
  const estate = await createEstate(label, { approvals: { groups, ...approvals }, ...overrides });
  await cp(path.join(import.meta.dirname, 'fixtures', 'approvals.yaml'), path.join(estate.policyDir, 'approvals.yaml'));
  const broker = await startInProcess(estate);
  const clients = new Map<string, Client<typeof ApprovalService>>();
  return {
    estate,
    log: broker.log,
    tasks: estate.client(TaskService, 'orchestrator'),
    agent: estate.client(CredentialService, 'agent/analyst'),
    admin: estate.client(AdminService, 'operator'),
    audit: estate.client(AuditService, 'auditor'),
    approvals: (workload) => {
      const known = clients.get(workload) ?? estate.client(ApprovalService, workload);
      clients.set(workload, known);
      return known;
    },
    stop: async () => {
      await broker.stop(500);
      await estate.remove();
    },
  };
}

export async function openTask(
  { tasks }: Pick<Served, 'tasks'>,
  change: Parameters<Served['tasks']['openTask']>[0] = {},
): Promise<string> {
  const { task } = await tasks.openTask({
    intent: 'a task that people look at',
    agent: 'analyst',
    tools: [look, turn, open, refund, shut],
    ...change,
  });
  return task!.taskId;
}

/** Asks for a credential, which is refused, and names the approval that was asked for. */
export async function askFor(
  { agent }: Pick<Served, 'agent'>,
  request: Parameters<Served['agent']['issueCredential']>[0],
): Promise<{ name: string; refused: Refusal }> {
  const refused = await refusal(agent.issueCredential(request));
  return { name: refused.metadata['approval'] ?? '', refused };
}

export async function approve(
  { approvals }: Served,
  workload: string,
  approvalId: string,
  comment = '',
): Promise<Approval> {
  const answer = await approvals(workload).decideApproval({ approvalId, verdict: Verdict.APPROVE, comment });
  return answer.approval!;
}

export async function deny(
  { approvals }: Served,
  workload: string,
  approvalId: string,
  comment = '',
): Promise<Approval> {
  const answer = await approvals(workload).decideApproval({ approvalId, verdict: Verdict.DENY, comment });
  return answer.approval!;
}
