import { randomUUID } from 'node:crypto';
import type { Command } from 'commander';
import { CliError } from '../cli-error.ts';
import { defineRemote, withRequestId, type RemoteOptions } from '../define.ts';
import { duration, identifier, instant } from '../values.ts';

interface Options extends RemoteOptions {
  ttl?: number;
  deadline?: number;
  justification?: string;
  requestId?: string;
}

export function taskExtend(parent: Command): void {
  const command = defineRemote(parent, {
    name: 'extend',
    summary: 'Move the deadline of a task',
    description:
      'Moves the deadline of a task, later or earlier, within the longest life that the broker allows. Credentials never ' +
      'outlive it: it cannot be earlier than the end of one that cannot be revoked. To repeat a call with --request-id, give the same --deadline.',
    examples: [
      ['leasehold task extend tsk_0198f1c2a4b57d3e8f60718293a4b5c6 --ttl 30m', 'half an hour from now'],
      [
        'leasehold task extend tsk_0198f1c2a4b57d3e8f60718293a4b5c6 --deadline 2026-01-31T18:00:00Z',
        'until a stated time',
      ],
    ],
  });
  command
    .argument('<task>', 'task identifier', identifier('tsk'))
    .option('--ttl <duration>', 'the new end, from now', duration)
    .option('--deadline <time>', 'the new end', instant)
    .option('--justification <text>', 'why; recorded, never decides');
  withRequestId(command).action(async (taskId: string, options: Options) => {
    if ((options.ttl === undefined) === (options.deadline === undefined)) {
      throw new CliError('usage', 'the new end of the task is missing or given twice; give --ttl or --deadline', {
        reason: 'USAGE',
      });
    }
    const remote = await import('../remote.ts');
    const deadline = options.deadline ?? Date.now() + (options.ttl ?? 0);
    const answer = await remote.connect(options).call(remote.TaskService.method.extendTask, {
      requestId: options.requestId ?? randomUUID(),
      taskId,
      deadline: remote.timestampFromMs(deadline),
      justification: options.justification ?? '',
    });
    if (options.json === true) remote.jsonLine(remote.ExtendTaskResponseSchema, answer);
    else remote.showTask(answer.task);
  });
}
