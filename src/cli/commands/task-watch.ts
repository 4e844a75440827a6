import type { Command } from 'commander';
import { CliError } from '../cli-error.ts';
import { defineRemote, type RemoteOptions } from '../define.ts';
import { identifier } from '../values.ts';

/** Of the longest state or outcome that is common. */
const width = 'settling'.length;

export function taskWatch(parent: Command): void {
  const command = defineRemote(parent, {
    name: 'watch',
    summary: 'Follow a task until it is closed',
    description:
      'Shows the task now and after each change, until it is closed. A connection that breaks is made again. Exits with 12 ' +
      'when the task ends with a lease that could not be revoked.',
    examples: [
      ['leasehold task watch tsk_0198f1c2a4b57d3e8f60718293a4b5c6', 'one line per change'],
      ['leasehold task watch tsk_0198f1c2a4b57d3e8f60718293a4b5c6 --json', 'one JSON document per change'],
    ],
  });
  command
    .argument('<task>', 'task identifier', identifier('tsk'))
    .action(async (taskId: string, options: RemoteOptions) => {
      const remote = await import('../remote.ts');
      const seen = new Map<string, string>();
      let state = '';
      const clock = () => new Date().toISOString().slice(11, 19);
      for await (const now of remote.connect(options).stream(remote.TaskService.method.watchTask, { taskId }, true)) {
        const previous = state;
        state = remote.taskStateName(now.task?.state ?? remote.TaskState.UNSPECIFIED);
        if (options.json === true) {
          remote.jsonLine(remote.WatchTaskResponseSchema, now);
          continue;
        }
        if (state !== previous) {
          const tone = remote.taskTone(now.task?.state ?? remote.TaskState.UNSPECIFIED);
          remote.line(
            `${clock()}  task   ${remote.toned(state.padEnd(width), tone)}  ${remote.summaryText(now.summary)}`,
          );
        }
        for (const lease of now.leases) {
          const becomes = remote.outcomeName(lease.outcome) || remote.leaseStateName(lease.state);
          if (seen.get(lease.leaseId) === becomes) continue;
          seen.set(lease.leaseId, becomes);
          const what = remote.printable(`${lease.leaseId}  ${lease.tool}:${remote.tierName(lease.tier)}`);
          remote.line(`${clock()}  lease  ${remote.toned(becomes.padEnd(width), remote.leaseTone(lease))}  ${what}`);
        }
      }
      if (state === 'close_degraded') {
        throw new CliError(
          'unsettled',
          `a lease could not be revoked; an operator should look at leasehold lease list --troubled --task ${taskId}`,
          { reason: 'NOT_SETTLED' },
        );
      }
    });
}
