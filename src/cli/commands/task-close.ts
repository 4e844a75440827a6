import { randomUUID } from 'node:crypto';
import type { Command } from 'commander';
import { CliError } from '../cli-error.ts';
import { defineRemote, withRequestId, type RemoteOptions } from '../define.ts';
import { identifier } from '../values.ts';

interface Options extends RemoteOptions {
  justification?: string;
  wait?: boolean;
  requestId?: string;
}

export function taskClose(parent: Command): void {
  const command = defineRemote(parent, {
    name: 'close',
    summary: 'Close a task and everything below it, and settle its leases',
    description:
      'Closes a task and its subtree. When it returns, nothing is issued for them any more; with --wait it returns when ' +
      'every lease has an outcome, and exits with 12 when one has none yet or could not be revoked. Closing again is harmless.',
    examples: [
      ['leasehold task close tsk_0198f1c2a4b57d3e8f60718293a4b5c6 --wait', 'and see every credential die'],
      [
        'leasehold task close tsk_0198f1c2a4b57d3e8f60718293a4b5c6 --justification "agent misbehaves"',
        'with a reason for the audit',
      ],
    ],
  });
  command
    .argument('<task>', 'task identifier', identifier('tsk'))
    .option('--wait', 'return when every lease has an outcome, or the time-out is near')
    .option('--justification <text>', 'why; recorded, never decides');
  withRequestId(command).action(async (taskId: string, options: Options) => {
    const remote = await import('../remote.ts');
    const answer = await remote.connect(options).call(remote.TaskService.method.closeTask, {
      requestId: options.requestId ?? randomUUID(),
      taskId,
      justification: options.justification ?? '',
      wait: options.wait ?? false,
    });
    if (options.json === true) remote.jsonLine(remote.CloseTaskResponseSchema, answer);
    else {
      remote.showTask(answer.task);
      remote.line();
      remote.showLeases(answer.leases);
      if (answer.leases.length > 0) remote.line(remote.summaryText(answer.summary));
      if (answer.tree.length > 1) {
        remote.line();
        remote.showTree(answer.tree);
        remote.line(
          `${answer.tasks} tasks, ${answer.unsettledTasks} of them not settled; ${remote.summaryText(answer.summary)}`,
        );
      }
    }
    const state = answer.task?.state ?? remote.TaskState.UNSPECIFIED;
    if (options.wait === true && state !== remote.TaskState.CLOSED) {
      throw new CliError(
        'unsettled',
        `the task is ${remote.taskStateName(state)} (${remote.summaryText(answer.summary)}); the broker keeps settling, follow it with leasehold task watch ${taskId}`,
        { reason: 'NOT_SETTLED' },
      );
    }
  });
}
