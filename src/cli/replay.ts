import { timestampMs } from '@bufbuild/protobuf/wkt';
import type { TaskFacts } from '../domain/decision-record.ts';
import { recordOf } from '../domain/explanations.ts';
import type { PolicyRevision } from '../domain/policy.ts';
import { createReplay, type ReplayResult } from '../domain/replay.ts';
import type { StreamDecisionsResponse } from '../gen/leasehold/v1/policy_service_pb.js';

/** Decides a stream of recorded decisions again, message by message: nothing is kept but tasks and what differs. */
export async function replayDecisions(
  stream: AsyncIterable<StreamDecisionsResponse>,
  samples: number,
  progress: (done: number, total: number) => void,
  candidate: { compile: (environment: Readonly<Record<string, string>>) => Promise<PolicyRevision> },
): Promise<ReplayResult> {
  let replay: ReturnType<typeof createReplay> | undefined;
  const tasks = new Map<string, TaskFacts>();
  let [done, total] = [0, 0];
  for await (const message of stream) {
    replay ??= createReplay(await candidate.compile(message.environment), samples);
    total = Math.max(total, Number(message.total));
    for (const { taskId, facts } of message.tasks) {
      // A broker of an earlier release says nothing of labels: its tasks have none.
      tasks.set(taskId, { labels: {}, ...(JSON.parse(facts) as Omit<TaskFacts, 'labels'>) });
    }
    for (const decision of message.decisions) {
      const task = tasks.get(decision.taskId);
      if (task === undefined || decision.decideTime === undefined) continue;
      const { decisionId, workload, taskId, detail } = decision;
      const at = timestampMs(decision.decideTime);
      const above = [];
      for (let parent = up(tasks, task); parent !== undefined; parent = up(tasks, parent)) above.push(parent);
      replay.add(recordOf({ decisionId, at, workload, taskId, leaseId: undefined, detail }, task, above));
    }
    done += message.decisions.length;
    progress(done, total);
  }
  return replay?.result() ?? { decided: 0, same: 0, skipped: 0, groups: [] };
}

function up(tasks: ReadonlyMap<string, TaskFacts>, task: TaskFacts): TaskFacts | undefined {
  return task.parentTaskId === undefined ? undefined : tasks.get(task.parentTaskId);
}
