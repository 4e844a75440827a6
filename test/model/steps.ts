import { setTimeout as sleep } from 'node:timers/promises';
import { timestampMs } from '@bufbuild/protobuf/wkt';
import fc from 'fast-check';
import { expect } from 'vitest';
import type { Credential } from '../../src/gen/leasehold/v1/credential_service_pb.js';
import { maxLife, type Access, type AgentName, type Model, type ModelLease, type ModelTask } from './reference.ts';
import { answered, secretOf, toolAndTier, type Refused, type Replica, type World } from './world.ts';

export type Command = fc.AsyncCommand<Model, World>;
export type ReplicaIndex = 0 | 1;

export const replica = fc.constantFrom<ReplicaIndex>(0, 1);
export const index = fc.nat(30);

/** Clocks of replicas, the database and this process may differ by what a test moves them, and a little. */
export const slack = 6_000;

export function command(
  text: string,
  needs: 'nothing' | 'task' | 'lease' | 'approval',
  run: (model: Model, world: World) => Promise<void>,
): Command {
  return {
    check: ({ tasks }) => {
      if (needs === 'nothing') return true;
      if (needs === 'task') return tasks.length > 0;
      return tasks.some((task) => (needs === 'lease' ? task.leases : task.approvals).length > 0);
    },
    run,
    toString: () => text,
  };
}

export function pick<T>(items: readonly T[], index: number): T {
  return items[index % items.length]!;
}

export function pickLease({ tasks }: Model, index: number): { task: ModelTask; lease: ModelLease } {
  return pick(
    tasks.flatMap((task) => task.leases.map((lease) => ({ task, lease }))),
    index,
  );
}

/** Asks again and again until it is so; a world that does not get there is at fault. */
export async function eventually(what: string, isSo: () => Promise<boolean>): Promise<void> {
  const until = performance.now() + 15_000;
  while (!(await isSo())) {
    if (performance.now() > until) throw new Error(`never seen: ${what}`);
    await sleep(15);
  }
}

/** As long as a broker may take to compare its clock with its database's again. */
const comparesWithin = 10_000;

/** Time has just jumped: a replica that compared the two clocks at that moment refuses until it compares again. */
export function tolerated({ clock }: World, { reason }: Refused): boolean {
  return reason === 'CLOCK_SKEW' && Date.now() - clock.advancedAt < comparesWithin;
}

/** What every credential has to be, whatever led to it. */
export function received(
  model: Model,
  task: ModelTask,
  access: Access,
  requestId: string,
  credential: Credential,
): ModelLease {
  const lease = credential.lease!;
  const { tool, tier } = toolAndTier(access);
  expect({ taskId: lease.taskId, agent: lease.agent, tool: lease.tool, tier: lease.tier }).toEqual({
    taskId: task.taskId,
    agent: task.agent,
    tool,
    tier,
  });
  const expiresAt = timestampMs(lease.expireTime!);
  const life = expiresAt - timestampMs(lease.issueTime!);
  expect(life).toBeLessThanOrEqual(maxLife[access]);
  expect(expiresAt).toBeLessThanOrEqual(task.deadline);
  expect(expiresAt).toBeLessThanOrEqual(model.now() + maxLife[access] + slack);
  expect(lease.policyRevision).toMatch(/^sha256:/);
  return {
    leaseId: lease.leaseId,
    requestId,
    access,
    agent: task.agent,
    expiresAt,
    renewals: 0,
    live: true,
    doubtful: false,
    stopped: false,
    ...secretOf(credential),
  };
}

export function issueAt(replica: Replica, task: ModelTask, agent: AgentName, access: Access, requestId: string) {
  return answered(replica.agents[agent].issueCredential({ requestId, taskId: task.taskId, ...toolAndTier(access) }));
}
