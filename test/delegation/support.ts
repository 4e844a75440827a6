import { randomUUID } from 'node:crypto';
import { cp } from 'node:fs/promises';
import path from 'node:path';
import type { Client } from '@connectrpc/connect';
import { loadConfig } from '../../src/config/load-config.ts';
import { devWorkload } from '../../src/dev/environment.ts';
import { AdminService } from '../../src/gen/leasehold/v1/admin_service_pb.js';
import { ApprovalService } from '../../src/gen/leasehold/v1/approval_service_pb.js';
import { AuditService } from '../../src/gen/leasehold/v1/audit_service_pb.js';
import { Tier } from '../../src/gen/leasehold/v1/common_pb.js';
import { CredentialService } from '../../src/gen/leasehold/v1/credential_service_pb.js';
import { PolicyService } from '../../src/gen/leasehold/v1/policy_service_pb.js';
import { TaskService } from '../../src/gen/leasehold/v1/task_service_pb.js';
import { startBroker, type Broker } from '../../src/root.ts';
import { createEstate, startInProcess, type TestEstate } from '../support/broker.ts';
import { installationMark } from '../../src/root-options.ts';
import { sql } from '../e2e/support.ts';
import { secondReplica } from '../faults/support.ts';

export const access = {
  reports: { tool: 'reports', tier: Tier.READ },
  publish: { tool: 'reports', tier: Tier.WRITE },
  warehouse: { tool: 'warehouse', tier: Tier.READ },
  ledger: { tool: 'ledger', tier: Tier.READ },
  settle: { tool: 'ledger', tier: Tier.EXECUTE },
};

export interface Estate {
  estate: TestEstate;
  /** HTTP doors of two replicas. */
  ports: readonly [number, number];
  tasks(workload: string, port?: number): Client<typeof TaskService>;
  credentials(workload: string, port?: number): Client<typeof CredentialService>;
  approvals(workload: string, port?: number): Client<typeof ApprovalService>;
  admin: Client<typeof AdminService>;
  audit: Client<typeof AuditService>;
  policy: Client<typeof PolicyService>;
  stop(): Promise<void>;
}

/** Two replicas over one database, with agents that delegate. */
export async function startEstate(
  label: string,
  more: { documents?: string[]; groups?: Record<string, string[]>; overrides?: Record<string, object> } = {},
): Promise<Estate> {
  const estate = await createEstate(label, {
    server: { limits: { callsPerSecond: 100_000, burst: 100_000 } },
    tasks: { renewalOverlap: '1s' },
    approvals: {
      groups: {
        'lead@leasehold.test': [devWorkload('approver/lena')],
        'helper@leasehold.test': [devWorkload('approver/hanna')],
        ...more.groups,
      },
    },
    ...more.overrides,
  });
  for (const name of more.documents ?? []) {
    await cp(path.join(import.meta.dirname, name), path.join(estate.policyDir, name));
  }
  await cp(path.join(import.meta.dirname, 'policy.yaml'), path.join(estate.policyDir, 'delegation.yaml'));
  const first = await startInProcess(estate);
  const second = await secondReplica(estate);
  const config = loadConfig({ path: second.configFile, env: process.env });
  const other: Broker = await startBroker({ config, write: () => undefined });
  const made = new Map<string, unknown>();
  const kept = <T>(key: string, make: () => T): T => {
    if (!made.has(key)) made.set(key, make());
    return made.get(key) as T;
  };
  const near = estate.httpPort;
  return {
    estate,
    ports: [near, second.httpPort],
    tasks: (workload, port = near) => kept(`t ${workload} ${port}`, () => estate.client(TaskService, workload, port)),
    credentials: (workload, port = near) =>
      kept(`c ${workload} ${port}`, () => estate.client(CredentialService, workload, port)),
    approvals: (workload, port = near) =>
      kept(`a ${workload} ${port}`, () => estate.client(ApprovalService, workload, port)),
    admin: estate.client(AdminService, 'operator'),
    audit: estate.client(AuditService, 'auditor'),
    policy: estate.client(PolicyService, 'operator'),
    stop: async () => {
      await Promise.all([first.stop(500), other.stop(500)]);
      await estate.remove();
    },
  };
}

type OpenInit = Parameters<Client<typeof TaskService>['openTask']>[0];

/** A task of the orchestrator, pinned to a workload of its agent. */
export async function openRoot(estate: Estate, agent: string, change: OpenInit = {}, port?: number) {
  const { task } = await estate.tasks('orchestrator', port).openTask({
    requestId: randomUUID(),
    intent: 'delegation test',
    agent,
    agentWorkload: devWorkload(`agent/${agent}/1`),
    tools: [access.reports, access.warehouse, access.ledger, access.settle],
    ...change,
  });
  return task!;
}

/** A task below another, opened by that one's agent. */
export async function openChild(estate: Estate, opener: string, parentTaskId: string, change: OpenInit = {}) {
  return (
    await estate.tasks(opener).openTask({
      requestId: randomUUID(),
      parentTaskId,
      intent: 'handed on',
      agent: 'helper',
      agentWorkload: devWorkload('agent/helper/1'),
      tools: [access.reports],
      ...change,
    })
  ).task!;
}

/** Login roles that this estate's broker has at its target, as the target itself says. */
export async function rolesAtTarget(estate: TestEstate): Promise<string[]> {
  const mark = installationMark(loadConfig({ path: estate.configFile, env: process.env }));
  const rows = await sql(
    estate.targetUrl,
    `SELECT rolname FROM pg_roles WHERE starts_with(rolname, $1) AND right(rolname, $2) = $3 ORDER BY rolname`,
    ['lh_', mark.length, mark],
  );
  return rows.map(({ rolname }) => String(rolname));
}
