import { InvalidArgumentError, type Command } from 'commander';
import type { MessageInitShape } from '@bufbuild/protobuf';
import type { SignalSubjectSchema } from '../gen/leasehold/v1/signal_service_pb.js';
import { CliError } from './cli-error.ts';
import { identifier } from './values.ts';

export interface SubjectOptions {
  agent?: string;
  workload?: string;
  tool?: string;
  task?: string;
}

export function withSubject(command: Command, what: string): Command {
  return command
    .option('--agent <agent>', `${what} this registered agent`)
    .option('--workload <workload>', `${what} this workload, such as a SPIFFE ID`)
    .option('--tool <tool>', `${what} this registered tool`)
    .option('--task <task>', `${what} this task and those below it`, identifier('tsk'));
}

/** Undefined when no option names one. */
export function subjectOf({
  agent,
  workload,
  tool,
  task,
}: SubjectOptions): MessageInitShape<typeof SignalSubjectSchema> | undefined {
  const named = Object.values({ agent, workload, tool, task }).filter((value) => value !== undefined);
  if (named.length > 1) {
    throw new CliError('usage', 'a signal is about one thing: name one of --agent, --workload, --tool, --task', {
      reason: 'USAGE',
    });
  }
  if (agent !== undefined) return { subject: { case: 'agent', value: agent } };
  if (workload !== undefined) return { subject: { case: 'workload', value: workload } };
  if (tool !== undefined) return { subject: { case: 'tool', value: tool } };
  if (task !== undefined) return { subject: { case: 'taskId', value: task } };
  return undefined;
}

export function score(text: string): number {
  const value = /^\d{1,3}$/.test(text) ? Number(text) : 101;
  if (value > 100) throw new InvalidArgumentError('It is a whole number from 0 to 100.');
  return value;
}
