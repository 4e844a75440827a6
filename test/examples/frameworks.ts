import { controls, type Control } from '../../src/domain/frameworks.ts';

/** What the READMEs of the examples may name, as their publishers spell it: what the report names, and these beside it. */
const owaspAgentic2026 = [
  'ASI01 Agent Goal Hijack',
  'ASI04 Agentic Supply Chain Vulnerabilities',
  'ASI05 Unexpected Code Execution (RCE)',
  'ASI06 Memory & Context Poisoning',
  'ASI07 Insecure Inter-Agent Communication',
];

/** MAESTRO has no identifiers: a layer and the name of a threat. */
const maestro = [
  'L2 Data Exfiltration',
  'L2 Data Poisoning',
  'L2 Data Tampering',
  'L4 Infrastructure-as-Code (IaC) Manipulation',
  'L7 Agent Goal Manipulation',
  'L7 Agent Identity Attack',
  'Cross-Layer Data Leakage',
  'Cross-Layer Goal Misalignment Cascades',
  'Cross-Layer Supply Chain Attacks',
];

const nistAiRmf10 = ['MAP 4.2', 'MEASURE 2.7', 'MEASURE 2.10', 'MANAGE 1.3'];

const nistCsf20 = ['ID.AM-07', 'ID.RA-07', 'PR.AA-03', 'PR.DS-10', 'PR.PS-06', 'RS.AN-06'];

/** OWASP's items and MAESTRO's threats are named with their titles, NIST's by their identifiers alone. */
const ofReport = (framework: Control['framework'], withTitle: boolean) =>
  controls
    .filter((control) => control.framework === framework)
    .map(({ item, title }) => (withTitle ? `${item} ${title}` : item));

export const frameworks: Readonly<Record<string, readonly string[]>> = {
  'OWASP Agentic': [...ofReport('OWASP Agentic 2026', true), ...owaspAgentic2026],
  MAESTRO: [...ofReport('CSA MAESTRO 2025', true), ...maestro],
  'NIST AI RMF': [...ofReport('NIST AI RMF 1.0', false), ...nistAiRmf10],
  'NIST CSF 2.0': [...ofReport('NIST CSF 2.0', false), ...nistCsf20],
};
