import { BrokerError } from '../errors.ts';
import { mergeNeeds, noNeeds, type DecisionFacts, type FactNeeds, type Facts, type Uncounted } from '../facts.ts';
import type { Task, ToolAccess } from '../model.ts';
import type { PolicyRevision } from '../policy.ts';
import type { Instant } from '../time.ts';
import type { Above } from './narrow.ts';

/** Levels below a root, whatever policy says: a token names every hop, and has to fit where tokens go. */
export const deepest = 8;
/** Open tasks of one tree: its close is one transaction, which has to be over within the time that a statement may take. */
export const mostInTree = 20_000;

type Get = (tenant: string, taskId: string) => Task | undefined | Promise<Task | undefined>;

/**
 * The tasks above, nearest first. What a stale one could get wrong does not matter to a decision: tools and parents never
 * change, a deadline that is moved ahead moves those below it, and a hand-over or a close ends those below it.
 */
export async function tasksAbove(get: Get, task: Pick<Task, 'tenant' | 'taskId' | 'parentTaskId'>): Promise<Task[]> {
  const above: Task[] = [];
  for (let parentId = task.parentTaskId; parentId !== undefined; parentId = above.at(-1)!.parentTaskId) {
    const found = get(task.tenant, parentId);
    const parent = found instanceof Promise ? await found : found;
    if (parent === undefined || above.length > deepest) {
      throw new BrokerError('INTERNAL', `the tasks above ${task.taskId} cannot be told`);
    }
    above.push(parent);
  }
  return above;
}

type FactTask = Parameters<DecisionFacts['load']>[0];

/** What decisions of one task and of those above it have to know. */
export interface ChainNeeds {
  own: FactNeeds | undefined;
  above: readonly (FactNeeds | undefined)[];
}

/** Undefined, as for nearly all, when no rule of any of them counts anything. */
export function needsOf(
  revision: PolicyRevision,
  task: Pick<Task, 'agent' | 'openedAt'>,
  above: readonly Task[] | undefined,
  access: ToolAccess,
  renewal: boolean,
  now: Instant,
): ChainNeeds | undefined {
  const own = revision.needs(task.agent, access, renewal, now - task.openedAt);
  if (above === undefined) return own && { own, above: [] };
  // What bounds the renewals of one task is about the task that asks, whosever rule it is.
  const theirs = above.map(({ agent, openedAt }) => revision.needs(agent, access, renewal, now - openedAt));
  const all = [own, ...theirs].reduce(mergeNeeds, undefined);
  if (all === undefined) return undefined;
  const others = theirs.map((needs) => needs && { ...needs, earlier: false });
  return { own: all.earlier ? mergeNeeds(own, { ...noNeeds, earlier: true }) : own, above: others };
}

/** All that any of them needs, as one. */
export function allNeeds(needs: ChainNeeds | undefined): FactNeeds | undefined {
  return needs && [needs.own, ...needs.above].reduce(mergeNeeds, undefined);
}

/** Facts for the task itself, and for those above it: what they count is asked for each. */
export async function loadFacts(
  facts: DecisionFacts,
  task: FactTask,
  above: readonly Task[] | undefined,
  access: ToolAccess,
  needs: ChainNeeds | undefined,
  now: Instant,
  except?: Uncounted,
): Promise<{ facts: Facts | undefined; above: readonly Above[] | undefined }> {
  const load = async (of: FactTask, needed: FactNeeds | undefined) =>
    needed === undefined ? undefined : await facts.load(of, access, needed, now, except);
  const own = needs?.own === undefined ? undefined : await load(task, needs.own);
  if (above === undefined) return { facts: own, above: undefined };
  const loaded = needs === undefined ? [] : await Promise.all(above.map((one, index) => load(one, needs.above[index])));
  const earlier = own?.earlier;
  const seen = (theirs: Facts | undefined): Facts | undefined =>
    earlier === undefined ? theirs : { held: undefined, lineage: undefined, rates: new Map(), ...theirs, earlier };
  return { facts: own, above: above.map((one, index) => aboveWith(one, seen(loaded[index]), now)) };
}

export function aboveWith(task: Task, facts: Facts | undefined, now: Instant): Above {
  return { task, facts, heartbeat: task.heartbeatDue !== undefined && task.heartbeatDue > now };
}
