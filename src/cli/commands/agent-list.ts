import type { Command } from 'commander';
import { defineRemote, type RemoteOptions } from '../define.ts';

interface Options extends RemoteOptions {
  overdue?: boolean;
}

export function agentList(parent: Command): void {
  const command = defineRemote(parent, {
    name: 'list',
    summary: 'List the registered agents, who answers for them and when they are to be reviewed',
    description:
      'Lists the registered agents with owner, risk and next review, and what they did in the last 30 days. For operators and ' +
      'auditors; at most 1,000.',
    examples: [
      ['leasehold agent list', 'all agents'],
      ['leasehold agent list --overdue', 'those whose owner should have looked at them'],
    ],
  });
  command.option('--overdue', 'only agents whose review is overdue').action(async (options: Options) => {
    const remote = await import('../remote.ts');
    const answer = await remote.connect(options).call(remote.ReportService.method.getReport, {});
    const agents = answer.agents.filter(({ review }) => options.overdue !== true || review === 'overdue');
    if (options.json === true) {
      for (const agent of agents) remote.jsonLine(remote.AgentReportSchema, agent);
      return;
    }
    if (agents.length === 0) {
      remote.line(options.overdue === true ? 'no review is overdue' : 'no agents');
      return;
    }
    remote.table(
      ['AGENT', 'OWNER', 'RISK', 'REVIEW BY', 'REVIEW', 'TASKS', 'ISSUED', 'DENIED'],
      agents.map((agent) => [
        agent.agent,
        agent.owner,
        agent.risk || '-',
        agent.reviewBy || '-',
        { text: agent.review, tone: agent.review === 'overdue' ? 'bad' : agent.review === 'due' ? 'warn' : undefined },
        String(agent.tasks),
        String(agent.issued),
        String(agent.denied),
      ]),
    );
  });
}
