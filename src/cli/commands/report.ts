import { Option, type Command } from 'commander';
import { defineRemote, type RemoteOptions } from '../define.ts';
import { duration } from '../values.ts';

interface Options extends RemoteOptions {
  format: 'md' | 'csv' | 'json';
  since: number;
  unusedFor?: number;
  reviewAhead?: number;
}

export function report(parent: Command): void {
  const command = defineRemote(parent, {
    name: 'report',
    summary: 'Write the inventory for governance: agents, owners, grants, refusals, outcomes',
    description:
      'Lists agents with owners and reviews due, tools and tiers with who may use them, grants that nobody used, refusals, ' +
      'approvals and how long people took, renewals and outcomes, and the items of OWASP Agentic, CSA MAESTRO, NIST AI RMF ' +
      'and NIST CSF that each part is evidence for (docs/governance.md).',
    examples: [
      ['leasehold report --since 30d > report.md', 'for people'],
      ['leasehold report --since 90d --unused-for 60d --format csv', 'for a spreadsheet'],
    ],
  });
  command
    .addOption(new Option('--format <format>', 'how to write it').choices(['md', 'csv', 'json']).default('md'))
    .option('--since <duration>', 'how far back', duration, 30 * 86_400_000)
    .option(
      '--unused-for <duration>',
      'list grants that were not used for so long; without it, in the period',
      duration,
    )
    .option('--review-ahead <duration>', 'a review within this is due; without it, 30 days', duration)
    .action(async (options: Options) => {
      const remote = await import('../remote.ts');
      const { asCsv, asMarkdown } = await import('../report-text.ts');
      const answer = await remote.connect(options).call(remote.ReportService.method.getReport, {
        since: remote.timestampFromMs(Date.now() - options.since),
        ...(options.unusedFor === undefined ? {} : { unusedFor: remote.durationFromMs(options.unusedFor) }),
        ...(options.reviewAhead === undefined ? {} : { reviewAhead: remote.durationFromMs(options.reviewAhead) }),
      });
      if (options.json === true || options.format === 'json') remote.jsonLine(remote.GetReportResponseSchema, answer);
      else process.stdout.write(options.format === 'csv' ? asCsv(answer) : asMarkdown(answer));
    });
}
