import { seesEverything } from '../access.ts';
import type { Caller } from '../caller.ts';
import { BrokerError } from '../errors.ts';
import type { Agent, ApprovalTerms, Quorum, Tool } from '../policy.ts';
import { anyApprover, type Approval } from './model.ts';

/** Groups that the configuration puts a workload in. */
export type GroupsOf = (caller: Pick<Caller, 'tenant' | 'workload'>) => ReadonlySet<string>;

/**
 * Every name under which a rule can mean this caller: its workload, the patterns that cover it, its groups. A group that
 * only the attestation knows cannot pass for a workload or for everybody.
 */
export function namesOf(caller: Caller, groupsOf: GroupsOf): string[] {
  const { workload } = caller;
  const attested = (caller.groups ?? []).filter((group) => group !== anyApprover && !group.includes('/'));
  const patterns: string[] = [];
  const start = workload.startsWith('spiffe://') ? 'spiffe://'.length : 0;
  for (let slash = workload.indexOf('/', start); slash !== -1; slash = workload.indexOf('/', slash + 1)) {
    patterns.push(`${workload.slice(0, slash)}/*`);
  }
  const everybody = caller.roles.has('approver') ? [anyApprover] : [];
  return [...new Set([workload, ...patterns, ...groupsOf(caller), ...attested, ...everybody])];
}

/** The rules' approvers by name: placeholders become the owners' names. */
export function resolveQuorums(terms: ApprovalTerms, tool: Tool, agent: Agent | undefined): Quorum[] {
  const owners = [tool.owner, ...(agent === undefined ? [] : [agent.owner])];
  return terms.quorums.map(({ rule, approvers, count }) => ({
    rule,
    count,
    approvers: [
      ...new Set(
        approvers.length === 0
          ? owners
          : approvers.flatMap((name) => {
              if (name === 'tool-owner') return [tool.owner];
              if (name === 'agent-owner') return agent === undefined ? [] : [agent.owner];
              return [name];
            }),
      ),
    ],
  }));
}

/** The quorums that this caller's word counts for. */
export function quorumsOf(approval: Approval, names: readonly string[]): number[] {
  return approval.quorums.flatMap(({ approvers }, index) =>
    approvers.some((approver) => names.includes(approver)) ? [index] : [],
  );
}

/** Whoever asked for the work, or could do it, never decides about it. */
export function isRequester(caller: Caller, approval: Approval): boolean {
  return (
    caller.workload === approval.workload ||
    caller.workload === approval.opener ||
    approval.excluded.includes(caller.workload) ||
    caller.agents.has(approval.agent) ||
    (approval.parentAgent !== undefined && caller.agents.has(approval.parentAgent))
  );
}

export function mayDecide(caller: Caller, approval: Approval, names: readonly string[]): boolean {
  return (
    caller.tenant === approval.tenant &&
    caller.roles.has('approver') &&
    !isRequester(caller, approval) &&
    quorumsOf(approval, names).length > 0
  );
}

/** Asked for it, as the task's opener or as its agent. Who acts for a task that holds it for one below, storage knows. */
export function asked(caller: Caller, approval: Approval): boolean {
  if (approval.kind === 'for_child') return [approval.opener, approval.requestedBy].includes(caller.workload);
  return (
    caller.workload === approval.opener ||
    (caller.agents.has(approval.agent) && (approval.workload === undefined || approval.workload === caller.workload))
  );
}

export function maySee(caller: Caller, approval: Approval, names: readonly string[]): boolean {
  return (
    caller.tenant === approval.tenant &&
    (seesEverything(caller) ||
      asked(caller, approval) ||
      approval.votes.some(({ approver }) => approver === caller.workload) ||
      mayDecide(caller, approval, names))
  );
}

/** The same answer whether it does not exist or is somebody else's. */
export function approvalNotFound(approvalId: string): BrokerError {
  return new BrokerError(
    'APPROVAL_NOT_FOUND',
    `no approval ${approvalId} that this caller may see: check its name and who asked for it`,
  );
}
