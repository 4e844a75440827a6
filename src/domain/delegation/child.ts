import { taskClosed } from '../access.ts';
import { BrokerError, fieldInvalid } from '../errors.ts';
import type { Task, ToolAccess } from '../model.ts';
import type { PolicyRevision } from '../policy.ts';
import type { Instant, Millis } from '../time.ts';
import { deepest, mostInTree } from './chain.ts';
import { lists } from './narrow.ts';

/** Why a child could not be written under its parent as it stands now. */
export type ChildRefusal = 'closed' | 'deadline' | 'children' | 'tree';

export interface WantedChild {
  agent: string;
  tools: readonly ToolAccess[];
  /** As the request says; undefined: as long as the parent has, at most the usual life. */
  deadline: { at: Instant; field: 'deadline' | 'ttl' } | undefined;
}

/** What the policy of those above says about a task below them; throws with the first thing that does not fit. */
export function checkChild(
  revision: PolicyRevision,
  wanted: WantedChild,
  above: readonly [Task, ...Task[]],
  now: Instant,
): { maxOpenChildren: number } {
  const [parent] = above;
  const ended = above.find(({ state, deadline }) => state !== 'open' || deadline <= now);
  if (ended !== undefined) throw taskClosed(ended);
  const { maxOpenChildren } = mayDelegate(revision, wanted.agent, above);
  for (const [index, access] of wanted.tools.entries()) {
    if (lists(parent, access)) continue;
    const name = `${access.tool}:${access.tier}`;
    throw refused(
      'tool',
      `tools[${index}]: ${name} is not among the tools of task ${parent.taskId}: a child gets at most what its parent has`,
      `tools[${index}]`,
    );
  }
  if (parent.agentWorkload === undefined) {
    throw refused(
      'workload',
      `task ${parent.taskId} is not pinned to a workload yet: name agent_workload when it is opened, or let its agent act first; every hop of a delegation is attested`,
    );
  }
  const { deadline } = wanted;
  if (deadline !== undefined && deadline.at > parent.deadline) {
    throw fieldInvalid(
      deadline.field,
      `is later than the parent's deadline, ${new Date(parent.deadline).toISOString()}: a child never outlives its parent`,
    );
  }
  return { maxOpenChildren };
}

/** Whether each task above allows one at this depth, and the nearest allows this agent. */
export function mayDelegate(revision: PolicyRevision, agent: string, above: readonly [Task, ...Task[]]) {
  const [parent] = above;
  const delegation = revision.agents.get(parent.agent)?.delegation;
  if (delegation === undefined) {
    throw refused('not_declared', `agent ${parent.agent} does not delegate: its Agent document says nothing of it`);
  }
  if (!delegation.to.includes(agent)) {
    throw refused(
      'agent',
      `agent ${parent.agent} does not delegate to agent ${agent}; it does to ${delegation.to.join(', ')}`,
      'agent',
    );
  }
  for (const [index, { agent: name, taskId }] of above.entries()) {
    const depth = index + 1;
    const most = revision.agents.get(name)?.delegation?.maxDepth ?? 0;
    if (depth > most) {
      throw refused(
        'depth',
        `the task would be ${depth} levels below task ${taskId} of agent ${name}, whose policy allows ${most}`,
      );
    }
  }
  if (above.length > deepest) throw refused('depth', `no task is more than ${deepest} levels below its root`);
  return delegation;
}

/** Within the parent's, and no longer than a task lasts that says nothing. */
export function usualChildDeadline(parent: Task, now: Instant, defaultTtl: Millis): Instant {
  return Math.min(parent.deadline, now + defaultTtl);
}

export function childRefused(refusal: 'children' | 'tree', parent: Task, maxOpenChildren: number): BrokerError {
  if (refusal === 'tree') {
    return refused('tree', `the tree of task ${parent.rootTaskId} has ${mostInTree} open tasks, the most it may have`);
  }
  return refused(
    'children',
    `task ${parent.taskId} has ${maxOpenChildren} open tasks directly below it, the most that the policy of agent ${parent.agent} allows: close one first`,
  );
}

function refused(because: string, message: string, field?: string): BrokerError {
  return new BrokerError('DELEGATION_REFUSED', message, {
    metadata: { because },
    ...(field === undefined ? {} : { violations: [{ field, description: message }] }),
  });
}
