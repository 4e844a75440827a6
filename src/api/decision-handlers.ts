import type { JsonObject } from '@bufbuild/protobuf';
import { durationFromMs, timestampFromMs } from '@bufbuild/protobuf/wkt';
import { boundedArguments } from '../domain/arguments.ts';
import { taskFacts } from '../domain/decision-record.ts';
import { fieldInvalid } from '../domain/errors.ts';
import type { Explanation, Explanations, RawDecision } from '../domain/explanations.ts';
import type { Task } from '../domain/model.ts';
import type { Clock } from '../domain/time.ts';
import type { PolicyService } from '../gen/leasehold/v1/policy_service_pb.js';
import type { ServiceHandlers } from './call.ts';
import { constraintOf, effectMessage, instantOf, tierOf } from './convert.ts';
import { labelsField, name, taskIdField } from './fields.ts';

export interface DecisionOptions {
  explanations: Explanations;
  clock: Clock;
  /** Of this broker's configuration: conditions look at it. */
  environment: Readonly<Record<string, string>>;
  /** Bound of one message at the doors. */
  maxMessageBytes: number;
}

type Handlers = Pick<ServiceHandlers<typeof PolicyService>, 'explainDecision' | 'streamDecisions'>;

/** The part of PolicyService that is about decisions. */
export function decisionHandlers({ explanations, clock, environment, maxMessageBytes }: DecisionOptions): Handlers {
  return {
    explainDecision: async ({ subject }, { caller }) => {
      if (subject.case === 'decisionId') return explanationMessage(await explanations.recorded(caller, subject.value));
      if (subject.case === undefined) throw fieldInvalid('decision_id', 'must name a decision, or describe a request');
      const { access, taskId, agent, context, labels, workload, revision, renewals, time } = subject.value;
      const { arguments: declared = {}, senderConstraint } = subject.value;
      if (access === undefined) throw fieldInvalid('hypothetical.access', 'must name a tool and a tier');
      return explanationMessage(
        await explanations.hypothetical(caller, {
          taskId: taskId === '' ? '' : taskIdField(taskId),
          agent: agent === '' ? '' : name('hypothetical.agent', agent),
          context,
          labels: labelsField('hypothetical.labels', labels),
          workload,
          access: {
            tool: name('hypothetical.access.tool', access.tool),
            tier: tierOf('hypothetical.access.tier', access.tier),
          },
          at: instantOf(time),
          renewals,
          arguments: boundedArguments(declared),
          boundTo: constraintOf(senderConstraint),
          revision,
        }),
      );
    },

    streamDecisions: async function* (request, { caller, signal }) {
      const since = instantOf(request.since);
      if (since === undefined) throw fieldInvalid('since', 'must be a time');
      const bounds = {
        since,
        until: instantOf(request.until) ?? clock.now() + 60_000,
        agent: request.agent === '' ? undefined : name('agent', request.agent),
        tool: request.tool === '' ? undefined : name('tool', request.tool),
      };
      let first = true;
      for await (const part of explanations.stream(caller, bounds, signal)) {
        for (const { tasks, decisions } of inPieces(part, maxMessageBytes)) {
          yield {
            total: BigInt(first ? part.total : 0),
            environment: first ? { ...environment } : {},
            tasks,
            decisions,
          };
          first = false;
        }
      }
    },
  };
}

/** Contexts and arguments may be long, and a message has a bound: a piece is sent when it is a third full. */
function* inPieces(part: { tasks: readonly Task[]; decisions: readonly RawDecision[] }, maxMessageBytes: number) {
  const pieceBytes = Math.min(maxMessageBytes / 3, 256 * 1024);
  const waiting = new Map(part.tasks.map((task) => [task.taskId, task]));
  let piece = { tasks: [] as { taskId: string; facts: string }[], decisions: [] as object[] };
  let bytes = 0;
  const add = (task: Task) => {
    // Those above before it: they are what its decisions were bounded by.
    const parent = waiting.get(task.parentTaskId ?? '');
    waiting.delete(task.taskId);
    if (parent !== undefined) add(parent);
    const facts = JSON.stringify(taskFacts(task));
    piece.tasks.push({ taskId: task.taskId, facts });
    bytes += facts.length;
  };
  for (const { decisionId, at, taskId, workload, detail, leaseId = '' } of part.decisions) {
    const task = waiting.get(taskId);
    if (task !== undefined) add(task);
    piece.decisions.push({ decisionId, decideTime: timestampFromMs(at), taskId, workload, detail, leaseId });
    bytes += detail.length;
    if (bytes < pieceBytes) continue;
    yield piece;
    piece = { tasks: [], decisions: [] };
    bytes = 0;
  }
  // The first piece of all is sent even when it is empty: it says that there is nothing.
  yield piece;
}

function explanationMessage(explanation: Explanation) {
  const { full } = explanation;
  return {
    decisionId: explanation.decisionId,
    decideTime: timestampFromMs(explanation.at),
    policyRevision: explanation.revision,
    effect: effectMessage(explanation.effect),
    policyRule: explanation.rule,
    reason: explanation.reason,
    ...(explanation.ttl === undefined ? {} : { ttl: durationFromMs(explanation.ttl) }),
    ...(explanation.reproduced === undefined ? {} : { reproduced: explanation.reproduced }),
    ...(full === undefined
      ? {}
      : {
          rules: full.rules.map((rule) => ({
            rule: rule.rule,
            taskId: rule.taskId ?? '',
            effect: rule.effect,
            matched: rule.held === true,
            decided: rule.decided,
            condition: rule.when ?? '',
            note: note(rule.held),
            saw: rule.saw().map((seen) => ({ ...seen })),
          })),
          input: plain(full.input),
          obligations: plain(full.obligations),
        }),
  };
}

function note(held: boolean | { failed: string }): string {
  if (held === true) return '';
  return held === false ? 'its condition does not hold' : `its condition could not be evaluated: ${held.failed}`;
}

function plain(value: object): JsonObject {
  return JSON.parse(JSON.stringify(value)) as JsonObject;
}
