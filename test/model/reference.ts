/**
 * What the broker is held to, in as few words as can be: a task, its leases, its approvals, and when a request may
 * succeed. It knows nothing of storage, replicas or time beyond the deadline.
 */
export const accesses = ['api:read', 'api:write', 'api:execute', 'db:read', 'db:write'] as const;
export type Access = (typeof accesses)[number];
export type AgentName = 'alpha' | 'beta';

/** Longest life of each tier in milliseconds, as in fixtures/model.yaml. */
export const maxLife: Record<Access, number> = {
  'api:read': 600_000,
  'api:write': 300_000,
  'api:execute': 60_000,
  'db:read': 600_000,
  'db:write': 300_000,
};

/** What policy says when everything else is in order. */
export const policy: Record<AgentName, Partial<Record<Access, 'allow' | 'approval'>>> = {
  alpha: { 'api:read': 'allow', 'db:read': 'allow', 'api:write': 'approval' },
  beta: { 'api:read': 'allow', 'db:read': 'allow', 'db:write': 'allow' },
};
export const maxRenewals: Partial<Record<Access, number>> = { 'api:read': 40, 'db:read': 40 };

export interface ModelLease {
  leaseId: string;
  requestId: string;
  access: Access;
  expiresAt: number;
  renewals: number;
  /** Not returned, not superseded, its task open. */
  live: boolean;
  /** What must be found nowhere in the broker's database: of each time that it was handed out. */
  secrets: string[];
  /** The login at its target. */
  role: string | undefined;
}

export interface ModelApproval {
  approvalId: string;
  state: 'pending' | 'approved' | 'denied' | 'used';
}

export interface ModelTask {
  taskId: string;
  agent: AgentName;
  tools: readonly Access[];
  open: boolean;
  deadline: number;
  leases: ModelLease[];
  approvals: ModelApproval[];
}

export interface Model {
  tasks: ModelTask[];
  /** By replica: its clock was moved so far that it may refuse everything. */
  mayRefuse: [boolean, boolean];
}

export const emptyModel = (): Model => ({ tasks: [], mayRefuse: [false, false] });

/** Whether a first issue has to succeed, has to be refused, or has to be refused with a question to people. */
export function issueOutcome(task: ModelTask, agent: AgentName, access: Access): 'granted' | 'asks' | 'refused' {
  if (!task.open || task.agent !== agent || !task.tools.includes(access)) return 'refused';
  const rule = policy[agent][access];
  if (rule === undefined) return 'refused';
  if (rule === 'allow') return 'granted';
  if (task.approvals.some(({ state }) => state === 'approved')) return 'granted';
  return task.approvals.some(({ state }) => state === 'denied') ? 'refused' : 'asks';
}

/** On success: takes the use of the approval with it, as the issuing write does. */
export function takeApproval(task: ModelTask, access: Access): void {
  if (policy[task.agent][access] !== 'approval') return;
  const used = task.approvals.find(({ state }) => state === 'approved');
  if (used === undefined) throw new Error('issued without an approval');
  used.state = 'used';
}

export function mayRenew(task: ModelTask, lease: ModelLease): boolean {
  return task.open && lease.live && lease.renewals < (maxRenewals[lease.access] ?? 0);
}

export function closeInModel(task: ModelTask): void {
  task.open = false;
  for (const lease of task.leases) lease.live = false;
}
