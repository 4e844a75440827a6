import type { Command } from 'commander';
import { CliError } from '../cli-error.ts';
import { defineRemote, type RemoteOptions } from '../define.ts';

export function status(parent: Command): void {
  const command = defineRemote(parent, {
    name: 'status',
    summary: 'Say whether the broker can issue, and why not',
    description: 'Shows each part that issuing depends on. Exits with 7 when the broker answers but cannot issue.',
    examples: [
      ['leasehold status', 'part by part'],
      ['leasehold status --json >/dev/null && echo ready', 'a check for a script'],
    ],
  });
  command.action(async (options: RemoteOptions) => {
    const remote = await import('../remote.ts');
    const answer = await remote.connect(options).call(remote.AdminService.method.getStatus, {});
    if (options.json === true) remote.jsonLine(remote.GetStatusResponseSchema, answer);
    else {
      remote.fields([
        ['ready', answer.ready ? { text: 'yes', tone: 'good' } : { text: 'no', tone: 'bad' }],
        ['version', answer.version],
        ['replica', answer.replicaId],
        ['started', remote.moment(answer.startTime)],
        ['policy', answer.policyRevision],
        ['policy error', { text: answer.policyError, tone: 'bad' }],
        ['schema', String(answer.schemaVersion)],
        ['open leases', String(answer.openLeases)],
        [
          'troubled leases',
          { text: String(answer.troubledLeases), tone: answer.troubledLeases > 0n ? ('bad' as const) : undefined },
        ],
      ]);
      remote.line();
      remote.table(
        ['PART', 'READY', 'DETAIL'],
        answer.components.map((part) => [
          part.name,
          part.ready ? { text: 'yes', tone: 'good' as const } : { text: 'no', tone: 'bad' as const },
          part.detail,
        ]),
      );
    }
    if (!answer.ready) {
      const parts = answer.components.filter((part) => !part.ready).map((part) => part.name);
      throw new CliError(
        'unavailable',
        `the broker cannot issue: ${parts.join(', ') || 'it is not ready'}; see the details`,
        {
          reason: 'NOT_READY',
        },
      );
    }
  });
}
