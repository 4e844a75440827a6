/** What the READMEs of the examples may name, as their publishers spell it. */
const owaspAgentic2026 = [
  'ASI01 Agent Goal Hijack',
  'ASI02 Tool Misuse and Exploitation',
  'ASI03 Identity and Privilege Abuse',
  'ASI04 Agentic Supply Chain Vulnerabilities',
  'ASI05 Unexpected Code Execution (RCE)',
  'ASI06 Memory & Context Poisoning',
  'ASI07 Insecure Inter-Agent Communication',
  'ASI08 Cascading Failures',
  'ASI09 Human-Agent Trust Exploitation',
  'ASI10 Rogue Agents',
];

/** MAESTRO has no identifiers: a layer and the name of a threat. */
const maestro = [
  'L2 Data Exfiltration',
  'L2 Data Poisoning',
  'L2 Data Tampering',
  'L4 Infrastructure-as-Code (IaC) Manipulation',
  'L7 Agent Goal Manipulation',
  'L7 Agent Identity Attack',
  'L7 Agent Impersonation',
  'L7 Agent Tool Misuse',
  'L7 Compromised Agents',
  'L7 Repudiation',
  'Cross-Layer Data Leakage',
  'Cross-Layer Goal Misalignment Cascades',
  'Cross-Layer Privilege Escalation',
  'Cross-Layer Supply Chain Attacks',
];

const nistAiRmf10 = [
  'GOVERN 1.5',
  'GOVERN 2.1',
  'GOVERN 3.2',
  'MAP 3.5',
  'MAP 4.2',
  'MEASURE 2.7',
  'MEASURE 2.10',
  'MANAGE 1.3',
  'MANAGE 2.4',
  'MANAGE 4.1',
];

const nistCsf20 = [
  'ID.AM-07',
  'ID.RA-07',
  'PR.AA-03',
  'PR.AA-05',
  'PR.DS-10',
  'PR.PS-06',
  'DE.CM-03',
  'RS.AN-06',
  'RS.MI-01',
];

export const frameworks: Readonly<Record<string, readonly string[]>> = {
  'OWASP Agentic': owaspAgentic2026,
  MAESTRO: maestro,
  'NIST AI RMF': nistAiRmf10,
  'NIST CSF 2.0': nistCsf20,
};
